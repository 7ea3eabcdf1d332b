"""Writing the checkpoint of a layer-wise method: a part per layer while it runs, a Hugging Face folder at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runner import wording
from runner.contracts.account import Account
from runner.contracts.facts import DTYPE_BYTES, CheckpointFacts
from runner.contracts.model_description import Linears
from runner.errors import StepFailed
from runner.model.checkpoint import derived, formats
from runner.model.checkpoint.companions import COMPRESSION
from runner.model.checkpoint.headers import model_config
from runner.model.checkpoint.placed_part import PlacedPart
from runner.model.checkpoint.quantization import checkpoint_config
from runner.model.checkpoint.quantization.format import Matrix, Stored
from runner.model.checkpoint.reader import DTYPES, CheckpointReader
from runner.model.checkpoint.safetensors_writer import Entry
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.apply_method import dense
from runner.model.layerwise.method import Results, Transformed


@dataclass(frozen=True)
class Storage:
    """How changed weights are stored, by module; modules that are not in `stored` stay dense.

    `changes` are the modules that change, `linears` the linear modules of the model; `compression` is what
    compression.json says of how the checkpoint was quantized.
    """

    stored: Mapping[str, Stored] = field(default_factory=dict)
    changes: Collection[str] = ()
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
        self._experts: PlacedPart | None = None  # of the layer that is being written
        self._described: dict[str, dict[str, Any]] = {}  # what the record says of its experts

    def expert(self, index: int, changed: Mapping[str, Transformed]) -> None:
        """Write the changed matrices of an expert of a decoder layer, before the layer itself."""
        if self._experts is None:
            self._experts = self._expert_part(index)
        for name, result in changed.items():
            site, own = self.sites[name], self.storage.stored.get(name)
            if result.quantized is not None and own is not None:
                packed = formats.find(own.format).pack(name, result.quantized, self.quantization)
                for stored, tensor in packed.items():
                    self._experts.put(stored, tensor)
            elif site.index is not None:
                self._experts.put_site(site, dense(result, DTYPES[self.reader.header(site.tensor).dtype]))
            else:
                weight = dense(result, DTYPES[self.reader.header(site.tensor).dtype])
                self._experts.put(site.tensor, weight.T if site.transposed else weight)
            self._described[name] = _described(result)

    def _expert_part(self, index: int) -> PlacedPart:
        """The part of all experts of a layer that change; of a tensor that several share, with its bytes."""
        entries: dict[str, Entry] = {}
        shared = set()
        for site in self.sites.values():
            if site.layer != index or not site.is_expert or site.name not in self.storage.changes:
                continue
            if site.name in self.storage.stored:
                for name, (dtype, shape) in self._packed(site.name).items():
                    entries[name] = Entry(name, dtype, shape, DTYPE_BYTES[dtype] * math.prod(shape))
            else:
                header = self.reader.header(site.tensor)
                entries[site.tensor] = Entry(site.tensor, header.dtype, header.shape, header.nbytes)
                if site.index is not None:
                    shared.add(site.tensor)
        part = PlacedPart(self.parts.path(f"layer-{index:05d}-experts"), entries.values())
        for name in sorted(shared):
            part.copy(name, self.reader)
        return part

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
        experts, self._described = self._described, {}
        if self._experts is not None:
            self._experts.close()
            self._experts = None
        replaced = {self.sites[module].tensor for module in (*changed, *experts)}
        self.parts.add(f"layer-{index:05d}", tensors)
        self.parts.copy(f"layer-{index:05d}-kept", self.reader, [n for n in self.layers[index] if n not in replaced])
        return {"layer": index, "modules": {m: _described(r) for m, r in changed.items()} | experts}

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
        changed: dict[str, list[str]] = {}
        for module in done:
            changed.setdefault(self.sites[module].tensor, []).extend(self._stored(module))
        parts = derived.Parts(self.parts, max_shard_bytes, changed)
        return derived.write(self.reader, derived.Derived(parts, config, files, card=card), out)

    def _stored(self, module: str) -> list[str]:
        """The tensors that hold a changed module."""
        return list(self._packed(module)) if module in self.storage.stored else [self.sites[module].tensor]

    def _packed(self, module: str) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """The tensors that hold a packed module: name → type and shape."""
        site, own = self.sites[module], self.storage.stored[module]
        matrix = Matrix(site.rows, site.columns, site.transposed and site.index is None)
        return formats.find(own.format).tensors(module, own.scheme, matrix, self.reader.header(site.tensor).dtype)


def _described(result: Transformed) -> dict[str, Any]:
    """What the record says of a changed module."""
    metrics = {key: value if isinstance(value, int) else float(value) for key, value in result.metrics.items()}
    return {**describe(result), **metrics}


def describe(result: Transformed) -> dict[str, Any]:
    """The scheme a module was written with, as JSON; empty for a dense weight."""
    q = result.quantized
    if q is None:
        return {}
    described = {"bits": q.bits, "group_size": q.group_size, "strategy": q.strategy, "symmetric": q.symmetric}
    return described if q.numbers.is_integer else {"element": q.numbers.element, **described}
