"""The result of a trial, read from the folder of its job: what was measured, and what it missed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import GateFailed
from runner.job import records
from runner.job.directory import read_json
from runner.job.records import Record
from runner.progress import units
from runner.progress.board import is_missed
from runner.recipe.search_types import BYTES, Measure, Search, Value

MET, MISSED, REFUSED, FAILED = "met", "missed", "refused", "failed"
_NOT_MEASURED = 1.0  # added to the violation of a trial that stopped before its objectives were measured
_UNDECIDED = 1e-3  # the violation of a gate that was not decided


@dataclass(frozen=True)
class Trial:
    """A trial. `state`: MET every gate and constraint, MISSED one, was REFUSED before it ran, or FAILED.

    `measured` has the objectives and then the constraints, in their order; None where not measured, or not a number.
    `violation` is how far it is from keeping every limit, relative to them; 0 where it keeps all. `reason` says why it
    is not MET. `keys` has the seconds of computing of each of its steps by key, whichever job computed it.
    """

    number: int
    values: Mapping[str, Value]
    state: str
    measured: tuple[float | None, ...] = ()
    violation: float = 0.0
    reason: str = ""
    job: str | None = None
    keys: Mapping[str, float] | None = None

    def objectives(self, search: Search) -> tuple[float, ...] | None:
        """Return the objectives; None where one was not measured."""
        found = tuple(value for value in self.measured[: len(search.objectives)] if value is not None)
        return found if len(found) == len(search.objectives) else None


def finished(root: Path, job: str) -> bool:
    """Return whether a job has ended, with its gates passed or missed, and has the records to show for it."""
    state = read_json(root / job / "job.json")
    if state.get("exit_code") not in (0, GateFailed.exit_code):
        return False
    steps = read_json(root / job / "plan.json").get("steps", [])
    found = _records(root, job)
    return bool(found) and (state["exit_code"] != 0 or all(step["id"] in found for step in steps))


def read(root: Path, job: str, search: Search, number: int, values: Mapping[str, Value]) -> Trial:
    """Return the trial of a job that is `finished`."""
    found = _records(root, job)
    measured = tuple(_measure(found.get(measure.step), measure) for measure in search.measures)
    missed = [gate for gate in _gates(root / job / "events.jsonl") if is_missed(gate)]
    violation = sum(_excess(gate) for gate in missed)
    reasons = [f"{gate.get('id')}: {gate.get('text')}" for gate in missed]
    for constraint, value in zip(search.constraints, measured[len(search.objectives) :], strict=True):
        for limit, sign, word in ((constraint.max, 1, "above"), (constraint.min, -1, "below")):
            if limit is not None and value is not None and not sign * (value - limit) <= 0:
                violation += _relative(value, limit)
                shown, bound = figure(constraint, value), figure(constraint, limit)
                reasons.append(f"`{constraint.name}` is {shown}, {word} its limit {bound}")
    absent = [one.name for one, value in zip(search.measures, measured, strict=True) if value is None]
    if absent:
        violation += _NOT_MEASURED
        if not missed:
            reasons.append(f"`{absent[0]}` was not measured")
    keys = {record.key: record.seconds for record in found.values()}
    state = MISSED if reasons else MET
    return Trial(number, dict(values), state, measured, violation, "; ".join(reasons), job, keys)


def figure(measure: Measure, value: float | None) -> str:
    """Return a value of a measure as text; a dash for None."""
    if value is None:
        return "–"
    return units.size(value) if measure.metric == BYTES else units.number(value)


def _records(root: Path, job: str) -> dict[str, Record]:
    """Return step id → record of the steps that a job finished."""
    found = {}
    for step in read_json(root / job / "plan.json").get("steps", []):
        try:
            text = (root / job / "steps" / step["folder"] / "record.json").read_text(encoding="utf-8")
            found[step["id"]] = records.parse(text)
        except (OSError, ValueError):
            continue
    return found


def _measure(record: Record | None, measure: Measure) -> float | None:
    if record is None:
        return None
    if measure.metric == BYTES and (size := records.weight_bytes(record)) is not None:
        return float(size)
    value = record.metrics.get(measure.metric)
    return float(value) if value is not None and math.isfinite(value) else None


def _gates(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the verdicts on gates of the last run that are in a log of events."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line that a killed run left unfinished
        if event.get("event") == "job_started":
            found = []
        elif event.get("event") == "gate":
            found.append(event)
    yield from found


def _excess(gate: Mapping[str, Any]) -> float:
    if gate.get("undecided"):
        return _UNDECIDED
    return _relative(gate.get("value"), gate.get("limit"))


def _relative(value: float | None, limit: float | None) -> float:
    if value is None or limit is None or not (math.isfinite(value) and math.isfinite(limit)):
        return _NOT_MEASURED
    return max(abs(value - limit) / max(abs(limit), 1e-9), 1e-9)
