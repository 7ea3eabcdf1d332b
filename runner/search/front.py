"""The best trials of a search: the Pareto front of those that keep every limit, and the one that wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.recipe.search_types import MAXIMIZE, Search
from runner.search.trial import MET, Trial


def front(search: Search, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other dominates, in the order of the first objective; of equal ones the first."""
    points = _points(search, trials)
    kept: list[tuple[tuple[float, ...], Trial]] = []
    for point, trial in points:
        others = [other for other, one in points if one is not trial]
        equal = any(other == point and one.number < trial.number for other, one in points)
        if not equal and not any(_dominates(other, point) for other in others):
            kept.append((point, trial))
    return [trial for _, trial in sorted(kept, key=lambda entry: (entry[0], entry[1].number))]


def winner(search: Search, trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial; None where none keeps every limit.

    With two objectives it is the one of the front that is nearest to the best of both, each scaled to the range that
    it has on the front; of equally near ones the first.
    """
    best = front(search, trials)
    if not best:
        return None
    points = {trial.number: point for point, trial in _points(search, best)}
    axes = list(zip(*points.values(), strict=True))
    low, high = [min(axis) for axis in axes], [max(axis) for axis in axes]

    def distance(trial: Trial) -> float:
        return math.hypot(*(
            (value - a) / (b - a) if b > a else 0.0
            for value, a, b in zip(points[trial.number], low, high, strict=True)
        ))  # fmt: skip

    return min(best, key=lambda trial: (distance(trial), trial.number))


def _points(search: Search, trials: Sequence[Trial]) -> list[tuple[tuple[float, ...], Trial]]:
    """Return each trial that keeps every limit with its objectives, turned so that lower is better."""
    signs = [-1.0 if one.direction == MAXIMIZE else 1.0 for one in search.objectives]
    found = [(trial.objectives(search), trial) for trial in trials if trial.state == MET]
    return [
        (tuple(sign * value for sign, value in zip(signs, point, strict=True)), trial)
        for point, trial in found
        if point is not None
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(one, other, strict=True)) and tuple(one) != tuple(other)
