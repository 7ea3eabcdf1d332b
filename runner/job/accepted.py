"""The accepted job of a recipe: the last one that passed all its gates, or that a user accepted.

    <jobs>/accepted/<recipe>.json                    of a recipe without a matrix
    <jobs>/accepted/<recipe>+<sha of values>.json    of one combination of a matrix

A pointer is replaced atomically. It holds the metrics of its job, which gates use where the job itself is gone, and the
keys of its steps, which `store gc` does not delete.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import UsageError
from runner.job import files, listing, records
from runner.job.directory import read_json
from runner.job.store import Store
from runner.plan.types import Plan
from runner.recipe import references

FOLDER = "accepted"
Metrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Accepted:
    """A pointer. `metrics`: step id → metrics. `keys` of the steps. `time` is ISO 8601 UTC, `by` "apply" or "hand"."""

    recipe: str
    matrix: Mapping[str, Any]
    job: str
    metrics: Metrics
    keys: tuple[str, ...]
    time: str
    by: str


def pointer(root: Path, recipe: str, matrix: Mapping[str, Any]) -> Path:
    """Return the file of the pointer; it need not exist."""
    suffix = f"+{hashlib.sha256(files.canonical(dict(matrix)).encode()).hexdigest()[:12]}" if matrix else ""
    return root / FOLDER / f"{recipe}{suffix}.json"


def read(root: Path, recipe: str, matrix: Mapping[str, Any]) -> Accepted | None:
    """Return the accepted job of a recipe and combination; None where there is none, or the pointer cannot be read."""
    return _read(pointer(root, recipe, matrix))


def every(root: Path) -> list[Accepted]:
    """Return all accepted jobs of a jobs folder, sorted by the names of their files."""
    return [found for path in sorted((root / FOLDER).glob("*.json")) if (found := _read(path)) is not None]


def move(root: Path, found: Accepted) -> Accepted:
    """Make a job the accepted one. The pointer keeps its time where nothing else changed."""
    path = pointer(root, found.recipe, found.matrix)
    found = replace(found, metrics=_plain(found.metrics), time=records.now())
    before = _read(path)
    if before is not None and replace(found, time=before.time, by=before.by) == before:
        return before
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, files.pretty({"schema": 1, **asdict(found)}))
    return found


def accept(root: Path, name: str) -> Accepted:
    """Accept a job by hand. UsageError where it is not done: only a missed gate may be overruled."""
    job = listing.load(root, name)
    if job.status not in ("done", "gate-missed"):
        raise UsageError(f"job `{job.id}` cannot be accepted: its status is {job.status}", "apply its recipe first")
    plan = read_json(job.path / "plan.json")
    metrics, keys = metrics_of(root, job.id), listing.step_keys(plan)
    return move(root, Accepted(job.recipe, plan.get("matrix", {}), job.id, metrics, keys, "", "hand"))


def accept_plan(root: Path, plan: Plan, metrics: Metrics) -> Accepted:
    """Accept the job of a plan that is done with all its gates passed."""
    keys = tuple(step.key for step in plan.steps)
    recipe = plan.recipe
    return move(root, Accepted(recipe.name, dict(recipe.matrix), plan.job_id, metrics, keys, "", "apply"))


def metrics_of(root: Path, id: str) -> dict[str, dict[str, float]]:
    """Return step id → metrics of the steps of a job that are in its folder or in the store."""
    store = Store(root / "store")
    found: dict[str, dict[str, float]] = {}
    for step in read_json(root / id / "plan.json").get("steps", []):
        for folder in (root / id / "steps" / step["folder"], store.root / step["key"]):
            try:
                record = records.parse((folder / "record.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            found[step["id"]] = dict(record.metrics)
            break
    return found


def gate_references(root: Path, plan: Plan) -> dict[str, Metrics | None]:
    """Return the metrics of other jobs that a plan's gates refer to: reference as written → step id → metrics.

    None for `accepted` where nothing is accepted yet. UsageError for a job that is not there, or has no such metric.
    """
    found: dict[str, Metrics | None] = {}
    for step in plan.steps:
        for metric, rule in sorted(step.gates.items()):
            reference = references.from_rule(rule)
            if reference is None or reference.job is None:
                continue
            if reference.job == references.ACCEPTED:
                last = read(root, plan.recipe.name, plan.recipe.matrix)
                found[reference.text] = last.metrics if last is not None else None
                continue
            id = listing.find(root, reference.job)
            metrics = metrics_of(root, id)
            wanted = reference.step or step.id
            if metric not in metrics.get(wanted, {}):
                measured = ", ".join(f"`{s}`" for s in metrics if metric in metrics[s]) or "none of its steps"
                raise UsageError(
                    f"a gate of `{step.id}` refers to `{metric}` of step `{wanted}` in job `{id}`, which measured none",
                    f"there it was measured by {measured}; write `job:{id}/STEP`",
                )
            found[reference.text] = metrics
    return found


def _read(path: Path) -> Accepted | None:
    found = read_json(path)
    try:
        fields = {name: found[name] for name in Accepted.__dataclass_fields__}
        return Accepted(**fields | {"keys": tuple(fields["keys"])})
    except (KeyError, TypeError):
        return None


def _plain(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Return metrics as sorted dicts, without NaN and infinity: JSON does not have them, and they pass no gate."""
    return {id: {k: v for k, v in sorted(entry.items()) if math.isfinite(v)} for id, entry in sorted(metrics.items())}
