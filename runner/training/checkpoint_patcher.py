"""Writing what recovery has changed of a checkpoint: everything else is copied byte for byte, a layer at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from runner.contracts.facts import TensorHeader
from runner.errors import StepFailed
from runner.model.architecture.inspect import facts as read_facts
from runner.model.checkpoint.companions import COMPRESSION, copy_companions, write_json
from runner.model.checkpoint.headers import INDEX
from runner.model.checkpoint.quantization.format import Format
from runner.model.checkpoint.reader import DTYPES, CheckpointReader, require_finite
from runner.model.checkpoint.safetensors_writer import copy_range, write_all, written
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.linear import is_conv1d
from runner.model.layerwise.streamed_model import StreamedModel
from runner.training.modules import packed_linear
from runner.training.modules.lora_math import is_pruned, merged
from runner.training.objectives.recovery import NORM, SCALE

Change = Callable[[], torch.Tensor]
_DENSE_SHARD = 5 * 10**9


def weights(source: Path, out: Path, changes: Mapping[str, Change]) -> None:
    """Copy the shards of `source` (and their index) to `out`; tensors in `changes`, by stored name, get new values.

    A new value has the shape of the old one and is rounded once to its type, so that files keep their size and their
    layout. One changed tensor is in memory at a time. StepFailed for a value that is not finite once rounded.
    """
    with CheckpointReader(source) as reader:
        shards: dict[str, list[TensorHeader]] = {}
        for header in reader.headers.values():
            shards.setdefault(header.shard, []).append(header)
        for shard, headers in sorted(shards.items()):
            file = reader.file(shard)
            with written(out / shard) as target:
                copy_range(file, 0, os.fstat(file).st_size, target, shard)
                for header in headers:
                    if header.name in changes:
                        os.lseek(target, header.begin, os.SEEK_SET)
                        _put(target, header, changes[header.name]())
    if (source / INDEX).is_file():
        shutil.copyfile(source / INDEX, out / INDEX)


def _put(target: int, header: TensorHeader, value: torch.Tensor) -> None:
    tensor = value.detach().cpu().to(DTYPES[header.dtype]).contiguous()
    if tuple(tensor.shape) != header.shape:
        raise ValueError(f"`{header.name}` is {list(header.shape)}, its new value {list(tensor.shape)}")
    require_finite(tensor, header.name, "the trained weights")
    write_all(target, tensor.reshape(-1).view(torch.uint8).numpy().data)


def copy_companion_files(source: Path, out: Path) -> None:
    """Copy what stands beside the weights, but for the model card."""
    copy_companions(source, out)
    for name in ("config.json", "quantize_config.json", COMPRESSION):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


class Adapted:
    """The adapter of a checkpoint in `source`: `scales` by module in the model, `tensors` as `adapters.write` takes."""

    def __init__(self, source: Path, tensors: Mapping[str, torch.Tensor], scales: Mapping[str, float]) -> None:
        self.reader = CheckpointReader(source)
        self.tensors, self.scales = tensors, scales
        streamed = StreamedModel(source)
        self.stored = {name: streamed.stored_module(name) for name in scales}
        self.conv1d = {n for n in scales if is_conv1d(streamed.model.get_submodule(n)) and not streamed.is_packed(n)}
        streamed.reader.close()

    def changes(self) -> dict[str, Change]:
        """Every adapted weight merged, by the name of the tensor: [out, in], or as a Conv1D module stores it."""
        return {f"{stored}.weight": lambda name=name: self.merged(name) for name, stored in self.stored.items()}  # type: ignore[misc]

    def merged(self, name: str) -> torch.Tensor:
        """Under its mask where the weight was pruned. In the dtype that it, or its scales, are stored in."""
        stored = self.stored[name]
        bits = packed_linear.read(self.reader, stored).bits if self.reader.is_packed(stored) else None
        weight = self.reader.read_module_weight(stored)
        weight = weight.T if name in self.conv1d else weight
        a, b = (self.tensors[f"{name}.lora_{part}.weight"] for part in "AB")
        magnitude = self.tensors.get(f"{name}.lora_magnitude_vector")
        found = merged(weight, a, b, self.scales[name], magnitude, masked=is_pruned(weight, bits))
        return found.T if name in self.conv1d else found


def dense(adapted: Adapted, scratch: Path, out: Path) -> None:
    """Write the merged model of a packed checkpoint as a dense one. What is whole already is left as it is."""
    if (out / "config.json").is_file():
        return
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    reader = adapted.reader
    facts = read_facts(reader.folder, str(reader.folder))
    model_names = {stored: name for name, stored in adapted.stored.items()}
    parts = CheckpointWriter(scratch)
    inside: set[str] = set()
    for index in range(facts.layer_count):
        names = facts.layer_tensors(index)
        inside |= set(names)
        modules = [i.name for i in facts.sites if i.layer == index and reader.is_packed(i.name)]
        unpacked = {
            f"{m}.weight": adapted.merged(model_names[m]) if m in model_names else reader.read_module_weight(m)
            for m in modules
        }
        parts.add(f"layer-{index:05d}", {name: weight.contiguous() for name, weight in unpacked.items()})
        kept = [name for name in names if name.rpartition(".")[0] not in modules or name.endswith(".bias")]
        plain = {f"{stored}.weight" for stored in model_names if stored not in modules}
        parts.add(f"layer-{index:05d}-merged", {
            name: adapted.merged(model_names[name.removesuffix(".weight")]) for name in kept if name in plain
        })  # fmt: skip
        parts.copy(f"layer-{index:05d}-kept", reader, [name for name in kept if name not in plain])
    parts.copy("rest", reader, [name for name in reader.headers if name not in inside])
    parts.finish(out, _DENSE_SHARD)
    copy_companions(reader.folder, out)
    config = json.loads((reader.folder / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    write_json(out / "config.json", config)


def scale_changes(source: Path, trained: Path) -> dict[str, Change]:
    """The tensors that training of `recovery.scales` changes, from the file of its trained parameters."""
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


def _scale(reader: CheckpointReader, module: str, format: Format, trained: Change) -> Change:
    """s·(1 + δ) as `PackedLinear` computes it, in the layout of the file."""

    def value() -> torch.Tensor:
        weight = reader.read_quantized(module)
        old = weight.scale
        return format.store_scale(replace(weight, scale=(old.float() * (1 + trained())).to(old.dtype)))

    return value


def _value(trained: Path, name: str) -> Change:
    def value() -> torch.Tensor:
        with safe_open(trained, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return value


def named(tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """The modules that an adapter's tensors belong to, sorted."""
    yield from sorted({name.rpartition(".lora_")[0] for name in tensors})
