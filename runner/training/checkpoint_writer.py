"""Write a trained model: a copy of a checkpoint with the trained parameters in place of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.errors import StepFailed
from runner.model.architecture.inspect import facts as read_facts
from runner.model.checkpoint import derived
from runner.model.checkpoint.reader import DTYPES, CheckpointReader, require_finite
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.streamed_model import StreamedModel


@dataclass(frozen=True)
class Target:
    """The destination of a trained checkpoint: its folder, one for unfinished parts, and its model card's text."""

    out: Path
    parts: Path
    max_shard_bytes: int
    card: Callable[[Path], str] | None = None


def write(source: Path, trained: Path | Mapping[str, torch.Tensor], target: Target) -> Account:
    """Write the checkpoint in `source` with the parameters in `trained`, by their names in the model.

    Each is rounded once to the type it has in `source`; every other tensor keeps its bytes. One decoder layer is in
    memory at a time. StepFailed where `trained` has a name that is not in the checkpoint, or a value that is not
    finite.
    """
    facts = read_facts(source, str(source))
    streamed = StreamedModel(source)
    with CheckpointReader(source) as reader, _opened(trained) as values:
        changed: dict[str, str] = {}  # stored name → name in the model
        for name in values.names:
            stored = streamed.stored_name(name)
            if stored is None:
                raise StepFailed(f"the trained parameter `{name}` is not in {source}")
            changed[stored] = name
            changed |= {also: name for tied in streamed.tied_to(name) if (also := streamed.stored_name(tied))}
        parts = CheckpointWriter(target.parts)
        for part, tensors in _parts(facts):
            new = [name for name in tensors if name in changed]
            parts.add(part, {name: values.read(changed[name], DTYPES[reader.header(name).dtype]) for name in new})
            parts.copy(f"{part}-kept", reader, [name for name in tensors if name not in changed])
        new_tensors = derived.Parts(parts, target.max_shard_bytes, {name: [name] for name in changed})
        return derived.write(reader, derived.Derived(new_tensors, card=target.card), target.out)


def _parts(facts: CheckpointFacts) -> list[tuple[str, list[str]]]:
    """Return the tensors of a checkpoint by decoder layer, then the rest."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    layers = [facts.layer_tensors(index) for index in range(facts.layer_count)]
    owner = {name: f"layer-{index:05d}" for index, names in enumerate(layers) for name in names}
    for name in sorted(facts.tensors):
        groups[owner.get(name, "rest")].append(name)
    return sorted(groups.items())


class _Values:
    """Trained parameters by name, from a file or from memory."""

    def __init__(self, names: list[str], get: Any) -> None:
        self.names = names
        self._get = get

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        value: torch.Tensor = self._get(name)
        require_finite(value, name, "the trained weights")
        return value.to(dtype)


@contextmanager
def _opened(trained: Path | Mapping[str, torch.Tensor]) -> Iterator[_Values]:
    if isinstance(trained, Mapping):
        yield _Values(sorted(trained), trained.__getitem__)
        return
    with safe_open(trained, framework="pt") as file:
        yield _Values(sorted(file.keys()), file.get_tensor)
