"""Compare jobs: the params that differ, size, quality, speed, memory, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.text import Text

from runner.progress import units
from runner.recipe import secrets
from runner.report import diff, findings
from runner.report.job_report import JobReport
from runner.report.table import Cell, table

_ENDED = ("done", "gate-missed")
_MOST_PARAMS = 6  # columns of a table


@dataclass(frozen=True)
class Row:
    """One job. `size` is the bytes of its weights, `seconds` the time of its steps, also cached ones; None: unknown.

    `measured_alike`: its quality was measured in the way of most jobs, on the same data. Others are not compared.
    """

    id: str
    name: str
    status: str
    params: Mapping[str, Any]
    size: int | None
    quality: float | None
    speed: float | None
    seconds: float | None
    memory: int | None
    measured_alike: bool = True
    front: bool = False
    dominated_by: str | None = None


@dataclass(frozen=True)
class Comparison:
    """`metric` and `speed` name the metrics compared; None where no job has one. `axes` are those of the front."""

    rows: tuple[Row, ...]
    params: tuple[str, ...]
    metric: str | None
    higher_is_better: bool
    speed: str | None
    axes: tuple[str, ...]

    def __str__(self) -> str:
        """Return what `runner compare` prints, 100 columns wide."""
        return "\n".join(str(line).rstrip() for line in lines(self, 100))


def compare(jobs: Sequence[tuple[JobReport, Mapping[str, Any]]], metric: str | None = None) -> Comparison:
    """Compare jobs, each with the document of its recipe. `metric` is a metric of evaluations, or `step.metric`."""
    metric = metric or _common(jobs)
    speed = next((name for job, _ in jobs for name in _speeds(job)), None)
    recipes = [diff.flat_recipe(secrets.hide(recipe, secrets.values(recipe))) for _, recipe in jobs]
    params = differing(recipes)
    qualities = [_qualities(job, metric) if metric and job.status in _ENDED else {} for job, _ in jobs]
    usual = _usual(qualities)
    rows = []
    for (job, _), recipe, quality in zip(jobs, recipes, qualities, strict=True):
        seconds = [step.seconds for step in job.steps if step.seconds is not None]
        memories = [step.memory for step in job.steps if step.memory]
        rows.append(
            Row(
                id=job.id,
                name=findings.title(job),
                status=job.status,
                params={name: recipe.get(name) for name in params},
                size=job.size_after,
                quality=quality.get(usual, next(reversed(quality.values()), None)),
                speed=_speeds(job).get(speed) if speed else None,
                seconds=sum(seconds) if seconds else None,
                memory=max(memories) if memories else None,
                measured_alike=usual in quality or not quality,
            )
        )
    higher = findings.higher_is_better(metric.rpartition(".")[2]) if metric else False
    faster = findings.higher_is_better(speed) if speed else False
    judged = [row for row in rows if row.size is not None and row.measured_alike and _finite(row.quality)]
    timed = bool(judged) and speed is not None and all(_finite(row.speed) for row in judged)
    axes = ("size", metric or "quality", *((speed,) if timed and speed else ()))
    points = {
        row.id: (
            float(row.size or 0),
            (-1 if higher else 1) * (row.quality or 0.0),
            *([(-1 if faster else 1) * (row.speed or 0.0)] if timed else []),
        )
        for row in judged
    }
    marked = tuple(_marked(row, points) for row in rows)
    return Comparison(marked, params, metric, higher, speed, axes)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether `one` is at least as good on every axis and better on one; lower is better."""
    return all(x <= y for x, y in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def differing(recipes: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the params that differ between recipes; where none does, the other values that differ."""
    paths = dict.fromkeys(path for recipe in recipes for path in recipe)
    unequal = [path for path in paths if len({repr(recipe.get(path)) for recipe in recipes}) > 1]
    params = [path for path in unequal if path.startswith("params.")]
    return tuple(params or [path for path in unequal if path not in ("name", "description", "steps")])


def _usual(qualities: Sequence[Mapping[str, float]]) -> str:
    """Return the way in which most jobs measured their quality; of several, the one that a job took last."""
    ways = [way for each in qualities for way in each]
    return max(reversed(ways), key=ways.count, default="")


def _qualities(job: JobReport, metric: str) -> dict[str, float]:
    """Return the metric of the job's last checkpoint by how it was measured, the last one last.

    Without a checkpoint it is the last value measured.
    """
    step, _, name = metric.rpartition(".")
    points = [
        point
        for series in findings.series(job)
        if series.metric == name
        for point in series.points
        if not step or point.step == step
    ]
    made = [entry.id for entry in job.steps if entry.size is not None]
    of_last = [point for point in points if made and point.of == made[-1]]
    ways = {entry.id: entry.way for entry in job.steps}
    return {ways[point.step]: point.value for point in of_last or (points[-1:] if not made else ())}


def metrics(jobs: Sequence[JobReport]) -> list[str]:
    """Return every metric that evaluations of these jobs measured."""
    return sorted({series.metric for job in jobs for series in findings.series(job)})


def _common(jobs: Sequence[tuple[JobReport, Mapping[str, Any]]]) -> str | None:
    """Return perplexity where any job has it, else the metric that most jobs have."""
    counts: dict[str, int] = {}
    for job, _ in jobs:
        for metric in dict.fromkeys(series.metric for series in findings.series(job)):
            if not findings.is_speed(metric):
                counts[metric] = counts.get(metric, 0) + 1
    return max(counts, key=lambda metric: (metric == "perplexity", counts[metric]), default=None)


def _speeds(job: JobReport) -> dict[str, float]:
    """Return latencies and throughputs of the result; those of a training do not describe it."""
    found: dict[str, float] = {}
    for step in job.steps:
        if step.kind.startswith(("evaluate.", "build.", "measure.")):
            found |= {name: float(value) for name, value in step.metrics.items() if findings.is_speed(name)}
    return found


def _marked(row: Row, points: Mapping[str, Sequence[float]]) -> Row:
    if row.id not in points:
        return row
    better = next((id for id, point in points.items() if dominates(point, points[row.id])), None)
    return replace(row, front=better is None, dominated_by=better)


def lines(found: Comparison, width: int) -> list[Text]:
    """Return lines for a terminal: a table, then the front and its axes."""
    shown = found.params[:_MOST_PARAMS]
    head: list[Cell] = ["", "job", *(path.removeprefix("params.") for path in shown), "size"]
    head += [found.metric.replace("_", " ")] if found.metric else []
    head += [found.speed.replace("_", " ")] if found.speed else []
    rows: list[list[Cell]] = [[*head, "time", "memory", "status"]]
    for row in found.rows:
        cells: list[Cell] = [Text("●" if row.front else "", "green"), Text(row.id, "bold" if row.front else "")]
        cells += ["–" if row.params.get(path) is None else units.number(row.params[path]) for path in shown]
        cells.append(units.size(row.size) if row.size is not None else "–")
        cells += [units.number(row.quality) if row.quality is not None else "–"] if found.metric else []
        cells += [units.number(row.speed) if row.speed is not None else "–"] if found.speed else []
        cells += [
            units.duration(row.seconds) if row.seconds is not None else "–",
            units.size(row.memory) if row.memory is not None else "–", row.status,
        ]  # fmt: skip
        rows.append(cells)
    result = table(rows, width, "<<" + ">" * (len(rows[0]) - 3) + "<", indent=0, head=True)
    result.append(Text())
    if len(found.params) > len(shown):
        result.append(Text(f"{len(found.params) - len(shown)} more values differ: --json has them", "dim"))
    return [*result, *(Text(sentence) for sentence in sentences(found))]


def sentences(found: Comparison) -> list[str]:
    """Return sentences: the jobs on the front, those that are dominated, those that cannot be compared."""
    front = [row.id for row in found.rows if row.front]
    others = [row.id for row in found.rows if not row.measured_alike]
    left_out = [row.id for row in found.rows if not row.front and row.dominated_by is None and row.measured_alike]
    result = []
    if front:
        axes = f"{', '.join(found.axes[:-1])} and {found.axes[-1]}".replace("_", " ")
        result.append(f"Pareto front of {axes}: {', '.join(front)}")
    result += [f"{row.id} is dominated by {row.dominated_by}" for row in found.rows if row.dominated_by is not None]
    if others:
        what = (found.metric or "quality").replace("_", " ")
        result.append(f"not compared, {what} being measured in another way or on other data: {', '.join(others)}")
    if left_out:
        what = found.metric or "a metric"
        result.append(f"not compared, for want of a size or of {what}: {', '.join(left_out)}")
    return result


def document(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON."""
    rows = [
        {name: None if not _finite(value, True) else value for name, value in asdict(row).items()} for row in found.rows
    ]
    return {
        "schema": 1, "metric": found.metric, "higher_is_better": found.higher_is_better, "speed": found.speed,
        "axes": list(found.axes), "params": list(found.params), "front": [row.id for row in found.rows if row.front],
        "jobs": rows,
    }  # fmt: skip


def _finite(value: Any, others: bool = False) -> bool:
    """Return whether a value is a finite number; values of other types give `others`."""
    return math.isfinite(value) if isinstance(value, int | float) else others
