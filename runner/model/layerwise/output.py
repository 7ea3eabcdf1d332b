"""Writing the checkpoint of a layer-wise method: a part per layer while it runs, a Hugging Face folder at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runner import wording
from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_description import Linears
from runner.errors import StepFailed
from runner.model.checkpoint import derived, formats
from runner.model.checkpoint.companions import COMPRESSION
from runner.model.checkpoint.headers import model_config
from runner.model.checkpoint.quantization import checkpoint_config
from runner.model.checkpoint.quantization.format import Matrix, Stored
from runner.model.checkpoint.reader import DTYPES, CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.apply_method import dense
from runner.model.layerwise.method import Results, Transformed


@dataclass(frozen=True)
class Storage:
    """How changed weights are stored, by module; modules that are not in `stored` stay dense.

    `linears` are the linear modules of the model; `compression` is what compression.json says of how the checkpoint was
    quantized.
    """

    stored: Mapping[str, Stored] = field(default_factory=dict)
    act_order: bool = False
    linears: Linears | None = None
    compression: Mapping[str, Any] = field(default_factory=dict)


class Output:
    """The checkpoint that a layer-wise method makes of the one in `reader`; `parts` is a folder for finished layers."""

    def __init__(self, reader: CheckpointReader, facts: CheckpointFacts, storage: Storage, parts: Path) -> None:
        self.reader, self.storage = reader, storage
        self.sites = {site.name: site for site in facts.sites}
        self.layers = [facts.layer_tensors(index) for index in range(facts.layer_count)]
        self.quantization: dict[str, Any] = {}
        if storage.stored:
            self.quantization = checkpoint_config.write(
                storage.stored, reader.headers, storage.linears, act_order=storage.act_order
            )
        self.parts = CheckpointWriter(parts)

    def layer(self, index: int, changed: Mapping[str, Transformed]) -> dict[str, Any]:
        """Write one decoder layer; return what the record says of it."""
        tensors: dict[str, torch.Tensor] = {}
        for module, result in changed.items():
            own = self.storage.stored.get(module)
            if result.quantized is not None and own is not None:
                tensors |= formats.find(own.format).pack(module, result.quantized, self.quantization)
            else:
                weight = dense(result, DTYPES[self.reader.header(f"{module}.weight").dtype])
                tensors[f"{module}.weight"] = (weight.T if self.sites[module].transposed else weight).contiguous().cpu()
        replaced = {f"{module}.weight" for module in changed}
        self.parts.add(f"layer-{index:05d}", tensors)
        self.parts.copy(f"layer-{index:05d}-kept", self.reader, [n for n in self.layers[index] if n not in replaced])
        modules = {m: {**describe(r), **{k: float(v) for k, v in r.metrics.items()}} for m, r in changed.items()}
        return {"layer": index, "modules": modules}

    def finish(
        self, results: Results, out: Path, max_shard_bytes: int, card: Callable[[Path], str] | None = None
    ) -> Account:
        """Copy everything outside the layers, then put the folder together; `results` is what `layer` gave of each."""
        done = {module for layer in results for module in layer["modules"]}
        left = sorted(set(self.storage.stored) - done)
        if left:
            raise StepFailed(f"nothing was computed for {wording.ticked(left)}: no forward of the model calls them")
        inside = {name for layer in self.layers for name in layer}
        self.parts.copy("rest", self.reader, [name for name in self.reader.headers if name not in inside])
        config: Mapping[str, Any] | None = None
        files: dict[str, Mapping[str, Any]] = {}
        if self.storage.stored:
            config = {**model_config(self.reader.folder).raw, "quantization_config": self.quantization}
            repeated = checkpoint_config.files(self.storage.stored)
            files = {COMPRESSION: self.storage.compression, **dict.fromkeys(repeated, self.quantization)}
        changed = {f"{module}.weight": self._stored(module) for layer in results for module in layer["modules"]}
        parts = derived.Parts(self.parts, max_shard_bytes, changed)
        return derived.write(self.reader, derived.Derived(parts, config, files, card=card), out)

    def _stored(self, module: str) -> list[str]:
        """The tensors that hold a changed module."""
        own, weight = self.storage.stored.get(module), self.reader.header(f"{module}.weight")
        if own is None:
            return [weight.name]
        site = self.sites[module]
        matrix = Matrix(site.rows, site.columns, site.transposed)
        return list(formats.find(own.format).tensors(module, own.scheme, matrix, weight.dtype))


def describe(result: Transformed) -> dict[str, Any]:
    """The scheme a module was written with, as JSON; empty for a dense weight."""
    q = result.quantized
    if q is None:
        return {}
    described = {"bits": q.bits, "group_size": q.group_size, "strategy": q.strategy, "symmetric": q.symmetric}
    return described if q.numbers.is_integer else {"element": q.numbers.element, **described}
