"""Write the tensors that recovery changed; all others are copied byte for byte, a layer at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.errors import StepFailed
from runner.model.architecture.inspect import facts as read_facts
from runner.model.checkpoint import adapter_config, derived
from runner.model.checkpoint.headers import model_config, read_headers
from runner.model.checkpoint.quantization.format import Format
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.safetensors_writer import written
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.linear import is_conv1d
from runner.model.layerwise.streamed_model import StreamedModel
from runner.training.merged_experts import AdaptedExperts
from runner.training.modules import packed_linear
from runner.training.modules.lora_math import is_pruned, merged
from runner.training.objectives.recovery import NORM, SCALE

_DENSE_SHARD = 5 * 10**9


class Adapted:
    """The adapter of a checkpoint in `source`: its adapter_config.json, and tensors as `adapter_writer.write` takes."""

    def __init__(self, source: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self.reader = CheckpointReader(source)
        self.tensors = tensors
        streamed = StreamedModel(source)
        self.experts = AdaptedExperts(streamed, self.reader, config, tensors)
        ranks = {name.rpartition(".lora_A")[0]: t.shape[0] for name, t in tensors.items() if ".lora_A" in name}
        modules = {name: rank for name, rank in ranks.items() if name not in self.experts.parameters}
        scales = {name: adapter_config.scaling(config, name, rank) for name, rank in modules.items()}
        self.scales: Mapping[str, float] = scales
        self.stored = {name: streamed.stored_module(name) for name in scales}
        self.conv1d = {n for n in scales if is_conv1d(streamed.model.get_submodule(n)) and not streamed.is_packed(n)}
        streamed.reader.close()

    def changes(self) -> dict[str, derived.Change]:
        """Return the new weights by tensor name: [out, in], or [in, out] for Conv1D modules; and those of experts."""
        linears = {f"{stored}.weight": lambda name=name: self.merged(name) for name, stored in self.stored.items()}
        return linears | self.experts.changes()

    def merged(self, name: str) -> torch.Tensor:
        """Merge one weight, under its mask if it was pruned, in the dtype that it (or its scale) is stored in."""
        stored = self.stored[name]
        bits = packed_linear.read(self.reader, stored).bits if self.reader.is_packed(stored) else None
        weight = self.reader.read_module_weight(stored)
        weight = weight.T if name in self.conv1d else weight
        a, b = (self.tensors[f"{name}.lora_{part}.weight"] for part in "AB")
        magnitude = self.tensors.get(f"{name}.lora_magnitude_vector")
        found = merged(weight, a, b, self.scales[name], magnitude, masked=is_pruned(weight, bits))
        return found.T if name in self.conv1d else found


def dense(adapted: Adapted, scratch: Path, out: Path) -> Account:
    """Write the merged model of a packed checkpoint as a dense one; do nothing where the folder is complete."""
    done = scratch.with_name(f"{scratch.name}-done")
    reader = adapted.reader
    facts = read_facts(reader.folder, str(reader.folder))
    changed = _changed_by_merging(adapted, facts)
    if done.exists():
        tensors = derived.Parts(CheckpointWriter(scratch), _DENSE_SHARD, changed)
        return derived.account(reader.headers, read_headers(out), tensors)
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    model_names = {stored: name for name, stored in adapted.stored.items()}
    parts = CheckpointWriter(scratch)
    inside: set[str] = set()
    for index in range(facts.layer_count):
        names = facts.layer_tensors(index)
        inside |= set(names)
        modules = _packed(adapted, facts, index)
        unpacked = {
            f"{m}.weight": adapted.merged(model_names[m]) if m in model_names else reader.read_module_weight(m)
            for m in modules
        }
        parts.add(f"layer-{index:05d}", {name: weight.contiguous() for name, weight in unpacked.items()})
        dense_names = [name for name in names if name.rpartition(".")[0] not in modules or name.endswith(".bias")]
        plain = {f"{stored}.weight" for stored in model_names if stored not in modules}
        merged_plain = {
            name: adapted.merged(model_names[name.removesuffix(".weight")]) for name in dense_names if name in plain
        }
        parts.add(f"layer-{index:05d}-merged", merged_plain)
        parts.copy(f"layer-{index:05d}-kept", reader, [name for name in dense_names if name not in plain])
    parts.copy("rest", reader, [name for name in reader.headers if name not in inside])
    config = {key: value for key, value in model_config(reader.folder).raw.items() if key != "quantization_config"}
    account = derived.write(reader, derived.Derived(derived.Parts(parts, _DENSE_SHARD, changed), config), out)
    with written(done):
        """Write an empty file, which marks the folder as complete."""
    return account


def _packed(adapted: Adapted, facts: CheckpointFacts, layer: int) -> list[str]:
    """The packed modules of a decoder layer."""
    return [site.name for site in facts.sites if site.layer == layer and adapted.reader.is_packed(site.name)]


def _changed_by_merging(adapted: Adapted, facts: CheckpointFacts) -> dict[str, list[str]]:
    """The tensors that `dense` changes, with those that it writes for them."""
    merged = {f"{stored}.weight" for stored in adapted.stored.values()}
    changed: dict[str, list[str]] = {}
    for index in range(facts.layer_count):
        modules = set(_packed(adapted, facts, index))
        for name in facts.layer_tensors(index):
            module, _, key = name.rpartition(".")
            if module in modules and key != "bias":
                changed[name] = [f"{module}.weight"]
            elif module not in modules and name in merged:
                changed[name] = [name]
    return changed


def scale_changes(source: Path, trained: Path) -> dict[str, derived.Change]:
    """Return the tensors that `recovery.scales` changes, from the file of its trained parameters."""
    streamed = StreamedModel(source)
    reader, changes = streamed.reader, {}
    with safe_open(trained, framework="pt") as file:
        names = sorted(file.keys())
    for name in names:
        if name.endswith(SCALE):
            module = streamed.stored_module(name.removesuffix(SCALE))
            format = reader.format(module)
            if format is None:
                raise StepFailed(f"the module `{module}`, whose scales were trained, is not packed in {source}")
            stored = f"{module}.{format.SCALE}"
            changes[stored] = _scale(reader, module, format, _value(trained, name))
        elif name.endswith(NORM):
            parameter = f"{name.removesuffix(NORM)}.weight"
            found = streamed.stored_name(parameter)
            if found is None:
                raise StepFailed(f"the trained parameter `{parameter}` is not in {source}")
            changes[found] = _value(trained, name)
        else:
            raise StepFailed(f"the trained parameter `{name}` is neither a scale nor the weight of a norm")
    return changes


def _scale(reader: CheckpointReader, module: str, format: Format, trained: derived.Change) -> derived.Change:
    """Return s·(1 + δ) as `PackedLinear` computes it, in the layout of the file."""

    def value() -> torch.Tensor:
        weight = reader.read_quantized(module)
        old = weight.scale
        return format.store_scale(replace(weight, scale=(old.float() * (1 + trained())).to(old.dtype)))

    return value


def _value(trained: Path, name: str) -> derived.Change:
    def value() -> torch.Tensor:
        with safe_open(trained, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return value
