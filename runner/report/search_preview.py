"""What `runner plan` shows of a recipe with a search: the space, the goal, what trials share, the cost at most."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.text import Text

from runner import wording
from runner.progress import units
from runner.recipe.search_types import Dimension, Search
from runner.report.table import table
from runner.search.forecast import Forecast
from runner.search.trial import figure


def lines(name: str, search: Search, found: Forecast, width: int) -> list[Text]:
    """Return the lines for a terminal."""
    rows = [[one.name, _values(one), f"when {one.when}" if one.when else ""] for one in search.space]
    return [
        Text(f"{name}: {_size(search, found)}, chosen by `{search.sampler}` in batches of {search.batch}", "bold"),
        *table(rows, width, "<<<"),
        Text(_goal(search)),
        Text(_shared(found)),
        Text(_cost(search, found)),
        *(Text(f"note: {note}", "yellow") for note in _notes(found)),
    ]


def document(name: str, search: Search, found: Forecast) -> dict[str, Any]:
    """Return the same as JSON; `seconds` are those of one trial, `most_seconds` null where the budget is of time."""
    most = found.most_seconds(search.trials) if search.trials is not None else None
    return {"schema": 1, "name": name, "search": asdict(search), **asdict(found), "most_seconds": most}


def _size(search: Search, found: Forecast) -> str:
    limits = []
    if search.trials is not None:
        limits.append(units.plural(search.trials, "trial"))
    if search.seconds is not None:
        limits.append(f"{units.duration(search.seconds)} of computing")
    of = f" (of {units.plural(found.combinations, 'combination')})" if found.combinations is not None else ""
    return f"search of at most {' and '.join(limits)}{of}"


def _values(one: Dimension) -> str:
    if one.choices:
        return wording.listed(one.choices)
    step = f" in steps of {one.step:g}" if one.step is not None else ""
    return f"{one.low:g} to {one.high:g}{step}{', logarithmic' if one.log else ''}"


def _goal(search: Search) -> str:
    goals = " and ".join(f"{one.direction} {one.name}" for one in search.objectives)
    limits = []
    for one in search.constraints:
        limits += [f"{one.name} at most {figure(one, one.max)}"] if one.max is not None else []
        limits += [f"{one.name} at least {figure(one, one.min)}"] if one.min is not None else []
    return f"{goals}, with {' and '.join(limits)}" if limits else goals


def _shared(found: Forecast) -> str:
    if not found.shared:
        return "no step is shared by every trial"
    return f"shared by every trial: {wording.ticked(found.shared)}"


def _cost(search: Search, found: Forecast) -> str:
    each = f"a trial computes {units.about(found.seconds)} at most, peak memory {units.size(found.memory)}"
    if search.trials is None:
        return each
    trials = search.trials if found.combinations is None else min(search.trials, found.combinations)
    return f"{each}; all of them {units.about(found.most_seconds(trials))} at most"


def _notes(found: Forecast) -> list[str]:
    if not found.refused:
        return []
    values, reason = found.refused[0]
    return [f"{len(found.refused)} of {found.planned} trials that were planned are refused, such as {values}: {reason}"]
