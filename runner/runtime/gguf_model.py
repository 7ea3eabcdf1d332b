"""Read a GGUF file back as the model of transformers that it was made of, in float32: what llama.cpp computes with.

transformers' own reader knows fewer architectures, and reads some as another model without a word (Llama 3's scaling of
frequencies, biases, Gemma's width of a head). Here the inverse of what `build.gguf` wrote is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.contracts.model_config import ModelConfig
from runner.errors import StepFailed
from runner.export import gguf_architecture, gguf_metadata, gguf_refusals
from runner.export.gguf_architecture import EXPERTS, Architecture
from runner.export.gguf_blocks import permutation
from runner.export.gguf_tensors import EMBEDDING, FREQUENCIES, HEAD, NORM
from runner.model.checkpoint.headers import model_config

_OUTER = {"token_embd": EMBEDDING, "output": HEAD, "output_norm": NORM}


def load(folder: Path, file: Path) -> Any:
    """Return the model of a file that `build.gguf` wrote into `folder`, beside its config.json, in float32.

    StepFailed where the file is another model than config.json describes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise StepFailed(f"`{folder}` has no config.json", "build it again")
    config = model_config(folder)
    if (refusal := gguf_refusals.refuse(config)) is not None:
        raise StepFailed(*refusal)
    state = dict(tensors(file, config))
    described = AutoConfig.from_pretrained(folder)
    if f"{HEAD}.weight" in state:  # what is stored decides, not config.json
        described.get_text_config().tie_word_embeddings = described.tie_word_embeddings = False
    with torch.device("meta"):
        kind: Any = type(AutoModelForCausalLM.from_config(described))
    made = kind.from_pretrained(
        None, config=described, state_dict=state, dtype=torch.float32, output_loading_info=True
    )  # fmt: skip
    model, found = made
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "holds, besides its model,")):
        left = [name for name in found[key] if name != f"{HEAD}.weight"]
        if left or found["mismatched_keys"]:
            raise StepFailed(f"`{file}` {what} `{min(left or ['a tensor of this shape'])}`", "build it again")
    model.tie_weights()
    return model.eval()


def tensors(file: Path, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file by their names in transformers' checkpoints, in float32."""
    import gguf

    own = gguf_architecture.of(config)
    modules = {name: module for module, name in own.layers.items()}
    queries, keys = gguf_metadata.heads(config)
    heads = {"attn_q": queries, "attn_k": keys} if own.permuted else {}
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == FREQUENCIES:
            continue
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        name, _, part = tensor.name.rpartition(".")
        if not name.startswith("blk."):
            yield f"{_OUTER[name]}.{part}", _unshifted(values, own, name)
            continue
        _, layer, short = name.split(".")
        module = f"model.layers.{layer}.{modules[short]}"
        if EXPERTS in module:
            before, after = module.split(EXPERTS)
            for number, matrix in enumerate(values):
                yield f"{before}experts.{number}.{after}.{part}", matrix
            continue
        if short in heads:
            values = values[torch.from_numpy(np.argsort(permutation(len(values), heads[short])))]
        if short == "ffn_gate_inp_shexp":
            values = values[None]
        yield f"{module}.{part}", _unshifted(values, own, short)


def _unshifted(values: torch.Tensor, own: Architecture, name: str) -> torch.Tensor:
    return values - 1 if own.shifted_norms and "norm" in name else values
