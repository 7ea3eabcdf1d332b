"""Parameters that transformers makes of several stored tensors while it loads a model: fused experts, split layers.

transformers' own converters do it, for one parameter at a time: `Conversions` says which stored tensors each one needs,
and builds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

Sources = tuple[tuple[str, str], ...]  # stored tensor and the pattern of the converter that it matches, in order


@dataclass(frozen=True)
class Group:
    """Stored tensors that one call of a converter takes, and the parameter that transformers names them by."""

    target: str
    sources: Sources
    converter: Any


class Conversions:
    """The conversions of a checkpoint.

    shapes   parameter → its shape, of those that converters give
    failed   stored tensors that a converter matches, of which it does not make what the model has
    """

    def __init__(self, model: Any, groups: Iterable[Group], tensors: Mapping[str, tuple[int, ...]]) -> None:
        self._model = model
        self._stored = tensors
        self._groups: dict[str, Group] = {}
        self._ready: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.failed: list[str] = []
        wanted = model.state_dict()
        for group in groups:
            try:
                made = self._convert(group, lambda name: torch.empty(tensors[name], device="meta"))
            except Exception:  # noqa: BLE001  whatever a converter raises, it cannot make anything of these tensors
                made = {}
            if not made or any(name not in wanted or wanted[name].shape != made[name].shape for name in made):
                self.failed += [name for name, _ in group.sources]
                continue
            self._groups |= dict.fromkeys(made, group)
            self.shapes |= {name: tuple(tensor.shape) for name, tensor in made.items()}

    def __contains__(self, parameter: str) -> bool:
        return parameter in self._groups

    def sources(self, parameter: str) -> tuple[str, ...]:
        """The stored tensors that a parameter is made of."""
        return tuple(name for name, _ in self._groups[parameter].sources)

    def group(self, parameter: str) -> Group:
        """The group of tensors that a parameter is made of."""
        return self._groups[parameter]

    def stored_shape(self, tensor: str) -> tuple[int, ...]:
        """The shape in which a tensor is stored."""
        return tuple(self._stored[tensor])

    def made(self, group: Group, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters that a converter makes of tensors that `read` gives, in place of those of the checkpoint."""
        return self._convert(group, read)

    def build(self, parameter: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Make a parameter; others that are made with it wait until they are asked for."""
        if parameter not in self._ready:
            self._ready |= self._convert(self._groups[parameter], read)
        return self._ready.pop(parameter)

    def _convert(self, group: Group, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        converter = deepcopy(group.converter)
        for name, pattern in group.sources:
            converter.add_tensor(group.target, name, pattern, lambda name=name: read(name))
        made = converter.convert(group.target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def groups(matched: Iterable[tuple[str, str, str]], converters: Iterable[Any]) -> list[Group]:
    """Group stored tensors by what is made of them. `matched` has (stored tensor, target, pattern of the converter)."""
    from transformers.core_model_loading import dot_natural_key

    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for stored, target, pattern in sorted(matched, key=lambda each: dot_natural_key(each[0])):
        found[target].append((stored, pattern))
    return [Group(target, tuple(sources), by_pattern[sources[0][1]]) for target, sources in found.items()]
