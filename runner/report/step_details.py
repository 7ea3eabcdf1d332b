"""Parse the details of step records: errors by layer and by module, curves of training.

Kinds from other packages write their own details; those without the expected form are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Module:
    """One linear module. `error` is the relative squared error of its output, `bits` the width of its weights.

    `error_before` is the error before a step that compensates for one.
    """

    name: str
    error: float | None
    error_before: float | None
    sparsity: float | None
    bits: int | None


@dataclass(frozen=True)
class Layer:
    """One decoder layer, counted from 0; errors are means over its modules, None where none has one."""

    layer: int
    error: float | None
    error_before: float | None
    modules: tuple[Module, ...]


@dataclass(frozen=True)
class Point:
    """The mean training loss of the optimizer steps since the point before; `step` counts from 1."""

    step: int
    loss: float
    learning_rate: float | None


@dataclass(frozen=True)
class Evaluation:
    step: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """A training. `kept` is the optimizer step whose weights are the result."""

    points: tuple[Point, ...]
    evaluations: tuple[Evaluation, ...]
    kept: int | None


def layers(details: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Return the layers of a layer-wise step; () for any other."""
    found = []
    for number, layer in enumerate(_list(details.get("layers"))):
        listed = layer.get("modules")
        if not isinstance(listed, Mapping):
            continue
        modules = tuple(_module(str(name), facts) for name, facts in listed.items() if isinstance(facts, Mapping))
        index = layer.get("layer")
        found.append(
            Layer(
                index if isinstance(index, int) else number,
                mean(module.error for module in modules),
                mean(module.error_before for module in modules),
                modules,
            )
        )
    return tuple(found)


def layer_errors(details: Mapping[str, Any]) -> Iterable[float | None]:
    """Return the mean error of each layer of a layer-wise step; [] where no layer has one."""
    means = [layer.error for layer in layers(details)]
    return means if any(mean is not None for mean in means) else []


def curve(details: Mapping[str, Any]) -> Curve | None:
    """Return the curve of a training step; None for any other."""
    points = tuple(
        Point(int(point["step"]), float(point["loss"]), _number(point.get("learning_rate")))
        for point in _list(details.get("curve"))
        if _number(point.get("step")) is not None and _number(point.get("loss")) is not None
    )
    evaluations = tuple(
        Evaluation(int(entry["step"]), float(entry["loss"]))
        for entry in _list(details.get("evaluations"))
        if _number(entry.get("step")) is not None and _number(entry.get("loss")) is not None
    )
    kept = details.get("kept")
    return Curve(points, evaluations, kept if isinstance(kept, int) else None) if points else None


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def place_in_layer(module: str) -> str:
    """Return `mlp.down_proj` for `model.layers.3.mlp.down_proj`; experts become one: `mlp.experts.*.down_proj`."""
    parts = module.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    inside = parts[numbers[0] + 1 :] if numbers and numbers[0] + 1 < len(parts) else parts
    return ".".join("*" if part.isdigit() else part for part in inside)


def _module(name: str, facts: Mapping[str, Any]) -> Module:
    bits = facts.get("bits")
    return Module(
        name,
        _number(facts.get("error")),
        _number(facts.get("error_before")),
        _number(facts.get("sparsity")),
        bits if isinstance(bits, int) else None,
    )


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
