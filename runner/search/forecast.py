"""The forecast of a search before it runs: what its trials share, and what they would cost at most."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runner.errors import RecipeError
from runner.plan.types import Preview
from runner.recipe.compose import spaces
from runner.recipe.search_types import Dimension, Search, Value, describe

MOST_PLANNED = 12  # trials that are planned to forecast all
_MOST_COUNTED = 10_000  # combinations


@dataclass(frozen=True)
class Forecast:
    """A forecast from `planned` trials. `combinations` None: endlessly many, or too many to count.

    `shared` are the ids of steps that all of them share, `shared_seconds` those of computing these; `seconds` are what
    the other steps of the costliest trial take; `memory` is the peak in bytes. `refused` are trials that cannot be
    planned, with the reason.
    """

    combinations: int | None
    planned: int
    shared: tuple[str, ...]
    shared_seconds: float
    seconds: float
    memory: int
    refused: tuple[tuple[str, str], ...]

    def most_seconds(self, trials: int) -> float:
        """Return the seconds of computing that so many trials take at most, by the costliest of those planned."""
        return self.shared_seconds + trials * self.seconds


def forecast(
    search: Search, defaults: Mapping[str, Value], preview: Callable[[Mapping[str, Value]], Preview]
) -> Forecast:
    """Plan some trials of a search with `preview`: all of a small space, else some drawn at random."""
    found, chosen = _chosen(search, defaults)
    previews: list[Preview] = []
    refused: list[tuple[str, str]] = []
    for point in chosen:
        try:
            previews.append(preview(point))
        except RecipeError as error:
            refused.append((describe(point), error.diagnostics[0].message))
    keys = [{f.step.key for f in each.forecasts} for each in previews]
    common = set.intersection(*keys) if keys else set()
    shared = [f for f in previews[0].forecasts if f.step.key in common] if previews else []
    costs = [sum(f.cost.seconds for f in each.forecasts if f.step.key not in common) for each in previews]
    return Forecast(
        combinations=len(found) if found is not None else None, planned=len(chosen),
        shared=tuple(f.step.id for f in shared), shared_seconds=sum(f.cost.seconds for f in shared),
        seconds=max(costs, default=0.0),
        memory=max((f.cost.memory for each in previews for f in each.forecasts), default=0),
        refused=tuple(refused),
    )  # fmt: skip


def covering(search: Search, defaults: Mapping[str, Value]) -> list[dict[str, Value]]:
    """Return points in which every choice occurs that the params' own values allow, and those that `forecast` plans."""
    points = _chosen(search, defaults)[1]
    for one in search.space:
        for value in one.choices:
            point: dict[str, Value] = {}
            for each in search.space:
                if spaces.is_active(each, {**defaults, **point}):
                    point[each.name] = value if each is one else defaults[each.name]
            points.append(point)
    return points


def _chosen(
    search: Search, defaults: Mapping[str, Value]
) -> tuple[list[dict[str, Value]] | None, list[dict[str, Value]]]:
    """Return all points of a space, None where they are too many, and those to plan."""
    size = spaces.size(search.space)
    if size is None or size > _MOST_COUNTED:
        return None, _drawn(search.space, defaults)
    found = list(spaces.points(search.space, defaults))
    return found, list(found) if len(found) <= MOST_PLANNED else random.Random(0).sample(found, MOST_PLANNED)


def _drawn(space: Sequence[Dimension], defaults: Mapping[str, Value]) -> list[dict[str, Value]]:
    """Return points drawn at random, always the same."""
    draw = random.Random(0)
    points = []
    for _ in range(MOST_PLANNED):
        point: dict[str, Value] = {}
        for one in space:
            if spaces.is_active(one, {**defaults, **point}):
                known = spaces.values(one)
                number = draw.random()
                free = spaces.rounded(one, one.low + number * (one.high - one.low)) if known is None else 0.0
                point[one.name] = known[int(number * len(known))] if known is not None else free
        points.append(point)
    return points
