"""Write the file of `build.gguf`, a tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from runner.contracts.context import Context, Result
from runner.contracts.model_config import ModelConfig
from runner.errors import StepFailed
from runner.export import companions, gguf_vocabulary
from runner.export.gguf_architecture import llama
from runner.export.gguf_blocks import BLOCK, PACKERS, Integers, block_type_for, permutation
from runner.model.architecture import inspect, tied_weights
from runner.model.checkpoint import headers
from runner.model.checkpoint.companions import write_json
from runner.model.checkpoint.reader import CheckpointReader
from runner.training.modules import packed_linear

# Module of transformers after "model.layers.N." → tensor of llama.cpp after "blk.N.".
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# What an architecture has in each layer besides: tensor of transformers → of llama.cpp.
_EXTRA: Mapping[str, Mapping[str, str]] = {
    "qwen2": {f"self_attn.{part}_proj.bias": f"attn_{part}.bias" for part in "qkv"},
    "qwen3": {f"self_attn.{part}_norm.weight": f"attn_{part}_norm.weight" for part in "qk"},
}
_REST = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0",
               "q4_0": "MOSTLY_Q4_0", "q4_1": "MOSTLY_Q4_1"}  # fmt: skip
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION: the current one of Q4_0, Q4_1 and Q8_0
_CARD = """\
---
library_name: llama.cpp
pipeline_tag: text-generation
tags: [gguf, runner]
---

# {file}

A model in the GGUF format, made by runner from the recipe below. Types of its tensors: {types}.

```sh
llama-cli -m {file} -p "..."          # llama.cpp
runner generate path/to/this/folder "..."
```

transformers reads it too, unpacked to float32:
`AutoModelForCausalLM.from_pretrained("path/to/this/folder", gguf_file="{file}")`.

## Recipe

```yaml
{recipe}
```
"""


class Entry(NamedTuple):
    """A tensor of the file: its name there, its module in the checkpoint, and its type.

    `heads` is the number of heads of its rows where llama.cpp has another order of rows, else 0. `part` is "weight" or
    "bias".
    """

    name: str
    module: str
    type: str
    heads: int
    part: str = "weight"

    @property
    def tensor(self) -> str:
        return f"{self.module}.{self.part}"


def _packed(reader: CheckpointReader, entry: Entry) -> bool:
    return entry.part == "weight" and reader.is_packed(entry.module)


def write(ctx: Context, described: Mapping[str, Any]) -> Result:
    """Write the GGUF file of `ctx`'s checkpoint; `described` is the part of engine.json that the plan knows."""
    file = ctx.out_dir / described["file"]
    source = ctx.inputs["checkpoint"]
    config = headers.model_config(source.path)
    vocabulary = gguf_vocabulary.read(source.path, config.vocabulary_size)
    linears = {i.name: (i.rows, i.columns) for i in inspect.facts(source.path, "the checkpoint").sites}
    rounding = 0.0
    with CheckpointReader(source.path) as reader:
        entries = [_typed(reader, entry) for entry in _entries(ctx, config, reader)]
        _check_complete(reader, entries)
        counts = {type: sum(e.type == type for e in entries) for type in sorted({e.type for e in entries})}
        writer = gguf.GGUFWriter(None, llama(config).architecture)
        _metadata(writer, config, max((t for t in counts if t != "f32"), key=counts.__getitem__, default="f32"))
        _tokens(writer, vocabulary)
        for entry in entries:
            shape = linears[entry.module] if _packed(reader, entry) else reader.header(entry.tensor).shape
            stored = gguf.quant_shape_to_byte_shape(shape, _type(entry))
            writer.add_tensor_info(entry.name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=_type(entry))
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        try:
            for done, entry in enumerate(entries, 1):
                ctx.safe_point()
                data, error = _data(reader, entry)
                writer.write_tensor_data(data)
                rounding = max(rounding, error)
                ctx.emit("progress", phase="writing", done=done, total=len(entries), unit="tensors")
        finally:
            writer.close()
    engine = {
        "format": "gguf", **described, "types": counts, "packages": {"gguf": version("gguf")},
        "source": {"digest": source.digest},
    }  # fmt: skip
    _folder(ctx, source.path, config, engine)
    metrics = {"bytes": file.stat().st_size, "scale_rounding": rounding}
    return Result(metrics=metrics, details={"types": counts})


def _folder(ctx: Context, source: Path, config: ModelConfig, engine: Mapping[str, Any]) -> None:
    """Write the other files of the folder: engine.json, config.json, tokenizer, README.md."""
    write_json(ctx.out_dir / "engine.json", engine)
    write_json(ctx.out_dir / "config.json", {k: v for k, v in config.raw.items() if k != "quantization_config"})
    companions.copy(source, ctx.out_dir)
    types = ", ".join(f"{count} {type.upper()}" for type, count in engine["types"].items())
    text = _CARD.format(file=engine["file"], types=types, recipe=ctx.recipe_text.rstrip())
    (ctx.out_dir / "README.md").write_text(text, encoding="utf-8")


def _ties(reader: CheckpointReader, config: ModelConfig) -> Mapping[str, str]:
    """Return the tied weights of embedding and head, if they are tied: name → name of the stored one."""

    def equal(one: str, other: str) -> bool:
        return tied_weights.equal_tensors(reader.folder, reader.header(one), reader.header(other))

    declared = {"lm_head.weight": "model.embed_tokens.weight"} if llama(config).tied else {}
    return tied_weights.resolve_ties(declared, reader.headers, equal)


def _entries(ctx: Context, config: ModelConfig, reader: CheckpointReader) -> Iterator[Entry]:
    """Yield every tensor in the order of the file, dense ones in the requested type; vectors are float32.

    Without `output.weight` llama.cpp uses the embedding as the head.
    """
    embedding, dense = ctx.params["embedding"], ctx.params["dense"]
    ties = _ties(reader, config)
    for module, name in _REST.items():
        if module == "lm_head" and ties:
            continue
        stored = ties.get(f"{module}.weight", module).removesuffix(".weight")
        yield Entry(f"{name}.weight", stored, "f32" if module == "model.norm" else embedding, 0)
    found = llama(config)
    rotated = {"self_attn.q_proj": found.heads, "self_attn.k_proj": found.kv_heads} if found.permuted else {}
    extra = _EXTRA.get(found.architecture, {})
    for layer in range(config.layer_count):
        for part, name in _LAYER.items():
            type = "f32" if part.endswith("norm") else dense
            yield Entry(f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{part}", type, rotated.get(part, 0))
        for tensor, name in extra.items():
            part, _, kind = tensor.rpartition(".")
            yield Entry(f"blk.{layer}.{name}", f"model.layers.{layer}.{part}", "f32", 0, kind)


def _check_complete(reader: CheckpointReader, entries: list[Entry]) -> None:
    """Raise StepFailed where a bias of the checkpoint has no place in the file."""
    written = {entry.tensor for entry in entries}
    for name in sorted(reader.headers):
        if name.endswith(".bias") and name not in written:
            raise StepFailed(f"`{name}` has no place in a GGUF file of this architecture", "use build.onnx")


def _typed(reader: CheckpointReader, entry: Entry) -> Entry:
    """Return the entry with the block type of its integers, if it is packed."""
    scheme = reader.packing.scheme(entry.module) if reader.packing and _packed(reader, entry) else None
    if scheme is None:
        return entry
    fit = block_type_for(scheme)
    if not isinstance(fit, str):
        raise StepFailed(f"`{entry.module}` {fit[0]}", fit[1])
    return entry._replace(type=fit)


def _type(entry: Entry) -> Any:
    return gguf.GGMLQuantizationType[entry.type.upper()]


def _data(reader: CheckpointReader, entry: Entry) -> tuple[NDArray[np.uint8], float]:
    """Return the bytes of a tensor [rows, bytes], and the rounding error of its scales in fp16."""
    if _packed(reader, entry):
        weight = _integers(reader, entry.module)
        if entry.heads:
            order = permutation(len(weight.values), entry.heads)
            weight = Integers(weight.values[order], weight.zeros[order], weight.scales[order])
        try:
            blocks = PACKERS[entry.type](weight)
        except OverflowError as error:
            raise StepFailed(f"`{entry.module}`: {error}", "build.onnx keeps scales as they are") from None
        return blocks.data, blocks.rounding
    tensor = reader.read(entry.tensor).float().numpy()
    if entry.heads:
        tensor = tensor[permutation(len(tensor), entry.heads)]
    with np.errstate(over="ignore"):
        data = gguf.quantize(tensor, _type(entry))
    if entry.type == "f16" and not np.isfinite(data).all():
        parameter = "dense" if entry.name.startswith("blk.") else "embedding"
        message = f"`{entry.tensor}` has values that float16 cannot hold"
        raise StepFailed(message, f"use `{parameter}: bf16`")
    return np.ascontiguousarray(data).view(np.uint8), 0.0


def _integers(reader: CheckpointReader, module: str) -> Integers:
    """Read the integers of a packed module with a scale for each block."""
    found = packed_linear.read(reader, module)
    if found.groups is not None:
        raise StepFailed(
            f"the groups of `{module}` are not runs of columns (g_idx of GPTQ's act-order), which blocks need",
            "quantize with static groups, as this project does, or use build.onnx",
        )
    rows, count = found.words.shape[0], found.in_features // BLOCK
    columns = found.columns()[::BLOCK]
    scales = found.scale.float().expand(rows, -1)[:, columns]
    middle = torch.full_like(found.scale, 2 ** (found.bits - 1)) if found.zero_point is None else found.zero_point
    zeros = middle.expand(rows, -1)[:, columns].to(torch.int16)
    return Integers(
        found.integers().to(torch.int16).numpy(), zeros.numpy().reshape(rows, count),
        np.ascontiguousarray(scales.numpy()),
    )  # fmt: skip


def _metadata(writer: Any, config: ModelConfig, type: str) -> None:
    """Write the keys of llama.cpp's `llama` architecture; `type` is that of most weights."""
    found = llama(config)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layer_count)
    writer.add_feed_forward_length(found.intermediate)
    writer.add_head_count(found.heads)
    writer.add_head_count_kv(found.kv_heads)
    writer.add_key_length(found.width)
    writer.add_value_length(found.width)
    writer.add_rope_dimension_count(found.width)
    writer.add_rope_freq_base(found.rope_base)
    writer.add_layer_norm_rms_eps(found.norm_epsilon)
    writer.add_vocab_size(config.vocabulary_size)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[type]]))


def _tokens(writer: Any, vocabulary: gguf_vocabulary.Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    special = {
        "bos": vocabulary.bos, "eos": vocabulary.eos, "pad": vocabulary.pad, "unk": vocabulary.unknown,
    }  # fmt: skip
    for name, id in special.items():
        if id is not None:
            getattr(writer, f"add_{name}_token_id")(id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)
