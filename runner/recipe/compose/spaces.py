"""Points of a search space: how many there are, which they are, which params vary in them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from runner.recipe.compose import when
from runner.recipe.search_types import Dimension, Value

_DIGITS = 6  # significant, of values of a range: those in between differ by nothing that a recipe could show


def contradiction(low: float, high: float, step: float | None = None, *, log: bool = False) -> tuple[str, str] | None:
    """Return what is wrong with a range, to follow "the range of `x`", and a remedy; None where nothing is."""
    if not all(map(math.isfinite, (low, high, step or 0))):
        return "is not finite", "give it numbers"
    if low >= high:
        return f"goes from {low:g} to {high:g}, which is no range", "make `low` smaller than `high`"
    if log and low <= 0:
        return f"begins at {low:g}, and `log` needs numbers above 0", "raise `low`, or leave `log` out"
    if log and step is not None:
        return "has `step` and `log`, which contradict one another", "leave one of them out"
    if step is not None and step > high - low:
        return f"has the step {step:g}, which leads past its end {high:g}", "make `step` smaller"
    if step is not None and not math.isclose((count := (high - low) / step), round(count), rel_tol=1e-9):
        last = low + math.floor(count) * step
        return f"never reaches {high:g} in steps of {step:g}", f"end it at {last:g}, or change `step`"
    return None


def values(one: Dimension) -> list[Value] | None:
    """Return the values of a param in order; None for a range of numbers without a step."""
    if one.choices:
        return list(one.choices)
    if one.is_integer:
        return list(range(int(one.low), int(one.high) + 1, int(one.step or 1)))
    if one.step is None:
        return None
    count = round((one.high - one.low) / one.step)
    return [rounded(one, one.low + number * one.step) for number in range(count + 1)]


def rounded(one: Dimension, value: float) -> float:
    """Return a number of a range with few digits, inside its bounds."""
    return min(max(float(f"{value:.{_DIGITS}g}"), one.low), one.high)


def is_active(one: Dimension, params: Mapping[str, Value]) -> bool:
    """Return whether a param varies where the others have these values."""
    return one.when is None or when.evaluate(one.when, params)


def size(space: Sequence[Dimension]) -> int | None:
    """Return how many combinations a space has at most, conditions aside; None for endlessly many."""
    counts = [values(one) for one in space]
    return math.prod(len(found) for found in counts if found is not None) if None not in counts else None


def points(space: Sequence[Dimension], defaults: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
    """Yield every combination of a space with finitely many, in order; params that do not vary are left out."""
    if not space:
        yield {}
        return
    pending: list[dict[str, Value]] = [{}]
    while pending:
        point = pending.pop()
        # The next param is that after the last one decided; those skipped by their conditions are decided too.
        index = next((i + 1 for i in range(len(space) - 1, -1, -1) if space[i].name in point), 0)
        while index < len(space) and not is_active(space[index], {**defaults, **point}):
            index += 1
        if index == len(space):
            yield point
        else:
            one = space[index]
            pending += [{**point, one.name: value} for value in reversed(values(one) or [])]
