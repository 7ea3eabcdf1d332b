"""Checkpoints of zeros, written byte by byte: no torch, and broken in any way a test wants."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "I32": 4, "I64": 8}
Shapes = Mapping[str, tuple[str, list[int]]]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
    "num_attention_heads": 2, "num_hidden_layers": 4, "tie_word_embeddings": True, "vocab_size": 32,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama_shapes(layers: int = 4, dtype: str = "BF16") -> dict[str, tuple[str, list[int]]]:
    """The tensors of a small Llama."""
    shapes: dict[str, tuple[str, list[int]]] = {"model.embed_tokens.weight": (dtype, [32, 8])}
    for i in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{i}.self_attn.{name}.weight"] = (dtype, [8, 8])
        for name, shape in (("gate_proj", [16, 8]), ("up_proj", [16, 8]), ("down_proj", [8, 16])):
            shapes[f"model.layers.{i}.mlp.{name}.weight"] = (dtype, shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (dtype, [8])
    shapes["model.norm.weight"] = (dtype, [8])
    return shapes


def shard(shapes: Shapes) -> bytes:
    """The bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return raw(header, at)


def raw(header: Any, data: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def write(folder: Path, shapes: Shapes | None = None, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    (folder / "model.safetensors").write_bytes(shard(llama_shapes() if shapes is None else shapes))
    return folder


def write_sharded(folder: Path, parts: int = 2) -> Path:
    """A small Llama in shards named as transformers names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    shapes = list(llama_shapes().items())
    size = math.ceil(len(shapes) / parts)
    weight_map: dict[str, str] = {}
    for part in range(parts):
        name = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        held = dict(shapes[part * size : (part + 1) * size])
        (folder / name).write_bytes(shard(held))
        weight_map |= dict.fromkeys(held, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
