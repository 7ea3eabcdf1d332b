"""Writing the checkpoint of a layer-wise method: a part per layer while it runs, a Hugging Face folder at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runner.contracts.facts import CheckpointFacts
from runner.model.checkpoint import formats
from runner.model.checkpoint.companions import COMPRESSION, copy_companions, write_json
from runner.model.checkpoint.quantization.module_patterns import unpacked_modules
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.reader import DTYPES, CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.apply_method import dense
from runner.model.layerwise.method import Transformed


@dataclass(frozen=True)
class Storage:
    """How changed weights are stored: `schemes` by module, in `format`; modules without a scheme stay dense.

    `compression` is what compression.json says of how the checkpoint was quantized.
    """

    format: str = ""
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    act_order: bool = False
    compression: Mapping[str, Any] = field(default_factory=dict)


class Output:
    """The checkpoint that a layer-wise method makes of the one in `reader`; `parts` is a folder for finished layers."""

    def __init__(self, reader: CheckpointReader, facts: CheckpointFacts, storage: Storage, parts: Path) -> None:
        self.reader, self.storage = reader, storage
        self.transposed = {linear.name for linear in facts.sites if linear.transposed}
        self.layers = [facts.layer_tensors(index) for index in range(facts.layer_count)]
        self.format = formats.find(storage.format) if storage.schemes else None
        self.quantization: dict[str, Any] = {}
        if self.format is not None:
            untouched = unpacked_modules(reader.headers, storage.schemes)
            self.quantization = self.format.config(storage.schemes, untouched, act_order=storage.act_order)
        self.parts = CheckpointWriter(parts)

    def layer(self, index: int, changed: Mapping[str, Transformed]) -> dict[str, Any]:
        """Write one decoder layer; return what the record says of it."""
        tensors: dict[str, torch.Tensor] = {}
        for module, result in changed.items():
            if result.quantized is not None and self.format is not None:
                tensors |= self.format.pack(module, result.quantized, self.quantization)
            else:
                weight = dense(result, DTYPES[self.reader.header(f"{module}.weight").dtype])
                tensors[f"{module}.weight"] = (weight.T if module in self.transposed else weight).contiguous().cpu()
        replaced = {f"{module}.weight" for module in changed}
        self.parts.add(f"layer-{index:05d}", tensors)
        self.parts.copy(f"layer-{index:05d}-kept", self.reader, [n for n in self.layers[index] if n not in replaced])
        modules = {m: {**describe(r), **{k: float(v) for k, v in r.metrics.items()}} for m, r in changed.items()}
        return {"layer": index, "modules": modules}

    def finish(self, out: Path, max_shard_bytes: int) -> None:
        """Everything outside the layers, then the folder: shards, config, tokenizer."""
        inside = {name for layer in self.layers for name in layer}
        self.parts.copy("rest", self.reader, [name for name in self.reader.headers if name not in inside])
        self.parts.finish(out, max_shard_bytes)
        config = json.loads((self.reader.folder / "config.json").read_text())
        if self.format is not None:
            config["quantization_config"] = self.quantization
            for name in self.format.FILES:
                write_json(out / name, self.quantization)
            write_json(out / COMPRESSION, dict(self.storage.compression))
        write_json(out / "config.json", config)
        copy_companions(self.reader.folder, out)


def describe(result: Transformed) -> dict[str, Any]:
    """The scheme a module was written with, as JSON; empty for a dense weight."""
    q = result.quantized
    if q is None:
        return {}
    return {"bits": q.bits, "group_size": q.group_size, "strategy": q.strategy, "symmetric": q.symmetric}
