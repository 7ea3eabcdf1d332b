"""What kinds of steps take, make and measure, as they declare it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from runner.recipe.schema import kinds

CHECKPOINT = "checkpoint"
CHECKPOINTS = (CHECKPOINT, "quantized-checkpoint")
SAME = "same"
ENGINE = "engine"
SENSITIVITY = "sensitivity"  # a reference to a step of the kind MEASURING
MEASURING = "analyze.sensitivity"


def consumes(kind: str) -> tuple[str, ...]:
    """Return the artifact types that a kind's main input may have."""
    return tuple(kinds.module(kind).CONSUMES)


def taken_unnamed(kind: str) -> tuple[str, ...]:
    """Return the artifact types that a kind takes where no `from` names its input."""
    found = consumes(kind)
    named = getattr(kinds.module(kind), "NAMED_ENGINES", False)
    return tuple(type for type in found if type != ENGINE) if named else found


def produces(kind: str) -> str:
    """Return the type of a kind's output; "same" where it is the type of the main input."""
    return str(kinds.module(kind).PRODUCES)


def metrics(kind: str) -> tuple[str, ...]:
    """Return the metrics that a gate on a step of this kind may name; <...> in one stands for any text."""
    return tuple(kinds.module(kind).METRICS)


def measures(kind: str, metric: str) -> bool:
    """Return whether a gate on a step of this kind may name `metric`."""
    return declared(kind, metric) is not None


def declared(kind: str, metric: str) -> str | None:
    """Return the name by which a kind declares a metric."""
    return matching(metrics(kind), metric)


def matching(names: Iterable[str], metric: str) -> str | None:
    """Return the first of the names that stands for a metric; <...> in one stands for any text."""
    patterns = {name: re.sub(r"<[^<>]*>", ".+", re.escape(name)) for name in names}
    return next((name for name, pattern in patterns.items() if re.fullmatch(pattern, metric)), None)


def noisy(kind: str) -> tuple[str, ...]:
    """Return the metrics of a kind of which it is known how sure they are, which gates with a confidence need."""
    return tuple(getattr(kinds.module(kind), "NOISE", ()))


def serves(kind: str, wanted: Sequence[str]) -> bool:
    """Return whether the output of a kind is of a wanted sort: an engine, or a checkpoint of any type."""
    if produces(kind) == ENGINE:
        return ENGINE in wanted
    return makes_checkpoint(kind) and any(type in wanted for type in CHECKPOINTS)


def makes_checkpoint(kind: str) -> bool:
    """Return whether the output of a kind is a checkpoint of any type."""
    return produces(kind) in (*CHECKPOINTS, SAME)
