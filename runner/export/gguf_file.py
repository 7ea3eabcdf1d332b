"""Write the file of `build.gguf`, a tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from runner.contracts.context import Context, Result
from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.errors import StepFailed
from runner.export import (
    companions,
    gguf_architecture,
    gguf_metadata,
    gguf_tensors,
    gguf_types,
    gguf_vocabulary,
    table_layouts,
)
from runner.export import gguf_weights as weights
from runner.export.gguf_assignment import Assignment
from runner.export.gguf_blocks import Blocks
from runner.export.gguf_tensors import EMBEDDING, HEAD, Entry
from runner.export.tables import Calibration
from runner.model.architecture import inspect, tied_config, tied_weights
from runner.model.checkpoint.companions import write_json
from runner.model.checkpoint.reader import CheckpointReader

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION: the current one of all types
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

## Recipe

```yaml
{recipe}
```
"""


def write(
    ctx: Context,
    described: Mapping[str, Any],
    importance: weights.Importance,
    assignment: Assignment | None = None,
    calibrated: Calibration | None = None,
) -> Result:
    """Write the GGUF file of `ctx`'s checkpoint; `described` is the part of engine.json that the plan knows.

    `importance` weighs the errors of columns; `assignment` has the types that a budget gives; by `calibrated` the
    integers of the head are found.
    """
    file = ctx.out_dir / described["file"]
    source = ctx.inputs["checkpoint"]
    facts = inspect.facts(source.path, "the checkpoint")
    vocabulary = gguf_vocabulary.read(source.path, facts.config.vocabulary_size)
    with CheckpointReader(source.path) as reader:
        entries = checked_entries(reader, facts, ctx, assignment.types if assignment is not None else {})
        counts = {type: sum(e.type == type for e in entries) for type in sorted({e.type for e in entries})}
        writer = gguf.GGUFWriter(None, described["architecture"])
        _metadata(writer, facts.config, _file_type(entries, str(ctx.params["dense"])))
        _tokens(writer, vocabulary)
        for entry in entries:
            type = gguf.GGMLQuantizationType[entry.type.upper()]
            stored = gguf.quant_shape_to_byte_shape(entry.shape, type)
            writer.add_tensor_info(entry.name, stored, np.dtype(np.uint8), entry.nbytes, raw_dtype=type)
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        rounding, head = 0.0, gguf_tensors.multiplied(entries)
        try:
            for done, entry in enumerate(entries, 1):
                ctx.safe_point()
                blocks = _data(reader, facts.config, entry, importance, calibrated if entry is head else None)
                writer.write_tensor_data(blocks.data)
                rounding = max(rounding, blocks.rounding)
                ctx.emit("progress", phase="writing", done=done, total=len(entries), unit="tensors")
        finally:
            writer.close()
    engine = {
        "format": "gguf", **described, "types": counts, "packages": {"gguf": version("gguf")},
        "source": {"digest": source.digest},
        **table_layouts.described(ctx.data_facts("data") if calibrated is not None else None),
    }  # fmt: skip
    _folder(ctx, source.path, facts.config, engine)
    size = file.stat().st_size
    metrics = {"bytes": size, "scale_rounding": rounding, "bits_per_weight": _bits(entries)}
    chosen = {"assignment": assignment.document()} if assignment is not None else {}
    tables = {"tables": engine["tables"]} if "tables" in engine else {}
    return Result(metrics=metrics, details={"types": counts, **tables, **chosen})


def _data(
    reader: CheckpointReader,
    config: ModelConfig,
    entry: Entry,
    importance: weights.Importance,
    calibrated: Calibration | None,
) -> Blocks:
    if entry.name == gguf_tensors.FREQUENCIES:
        factors = np.array([gguf_metadata.rope_factors(config)], dtype=np.float32)
        return Blocks(factors.view(np.uint8), 0.0)
    return weights.data(reader, entry, importance, calibrated)


def _bits(entries: list[Entry]) -> float:
    return 8 * sum(entry.nbytes for entry in entries) / sum(math.prod(entry.shape) for entry in entries)


def _folder(ctx: Context, source: Path, config: ModelConfig, engine: Mapping[str, Any]) -> None:
    """Write the other files of the folder: engine.json, config.json, tokenizer, README.md."""
    write_json(ctx.out_dir / "engine.json", engine)
    write_json(ctx.out_dir / "config.json", {k: v for k, v in config.raw.items() if k != "quantization_config"})
    companions.copy(source, ctx.out_dir)
    types = ", ".join(f"{count} {type.upper()}" for type, count in engine["types"].items())
    if "tables" in engine:
        types += f"; the head is {table_layouts.text(engine)}"
    text = _CARD.format(file=engine["file"], types=types, recipe=ctx.recipe_text.rstrip())
    (ctx.out_dir / "README.md").write_text(text, encoding="utf-8")


def checked_entries(
    reader: CheckpointReader, facts: CheckpointFacts, ctx: Context, assigned: Mapping[str, str]
) -> list[Entry]:
    """Return the tensors of the file. StepFailed where the checkpoint lacks one, or has one without a place."""

    def equal(one: str, other: str) -> bool:
        return tied_weights.equal_tensors(reader.folder, reader.header(one), reader.header(other))

    declared = {f"{HEAD}.weight": f"{EMBEDDING}.weight"} if tied_config.may_tie(facts.config) else {}
    tied = bool(tied_weights.resolve_ties(declared, reader.headers, equal))
    found, left = gguf_tensors.entries(facts, ctx.params, tied=tied, assigned=assigned)
    if left:
        name = gguf_architecture.of(facts.config).name
        raise StepFailed(f"`{left[0]}` has no place in a GGUF file of the architecture {name}", "use build.onnx")
    if lacking := gguf_tensors.missing(found, facts):
        raise StepFailed(f"the checkpoint has no tensor `{lacking[0]}`", "download it again")
    return found


def _file_type(entries: list[Entry], dense: str) -> int:
    """Return what the file says of itself: what was asked for, or the type of most tensors that were packed."""
    counts: dict[str, int] = {}
    for entry in entries:
        if len(entry.shape) > 1:
            name = (
                entry.type
                if entry.packed or entry.wanted == gguf_types.AUTO
                else dense
                if entry.name.startswith("blk.")
                else ""
            )
            counts[name] = counts.get(name, 0) + 1
    counts.pop("", None)
    return int(gguf.LlamaFileType[gguf_types.FILE_TYPES[max(counts, key=counts.__getitem__, default="f32")]])


def _metadata(writer: Any, config: ModelConfig, file_type: int) -> None:
    for key, value in gguf_metadata.metadata(config).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_file_type(file_type)


def _tokens(writer: Any, vocabulary: gguf_vocabulary.Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2" if vocabulary.scores is None else "llama")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is None:
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
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
