"""Summarize a job: the verdict, and how size and quality changed from step to step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runner.plan.types import MODEL
from runner.progress import board, units
from runner.progress.events import Event
from runner.report import growth
from runner.report.job_report import JobReport, StepReport

_HIGHER = re.compile(
    r"agreement|accuracy|(^|[_/])acc($|_)|exact_match|(^|[_/])f1($|_)|per_second|throughput|bleu|rouge"
)
_SPEED = re.compile(r"latency|per_second|throughput|time_to")


@dataclass(frozen=True)
class Verdict:
    """`level`: "good", "bad", "warn" or "idle"; `word` is the status in one or two words, `text` full sentences."""

    level: str
    word: str
    text: str


@dataclass(frozen=True)
class Measured:
    """A value measured by the step `step` on the artifact `of`: "model" or the id of the step that made it."""

    step: str
    of: str
    value: float


@dataclass(frozen=True)
class Series:
    """One metric, measured in one way, in the order of the recipe."""

    metric: str
    label: str
    points: tuple[Measured, ...]

    @property
    def higher_is_better(self) -> bool:
        return higher_is_better(self.metric)


@dataclass(frozen=True)
class Change:
    """A metric of a step's input and of its output; None where it was not measured."""

    label: str
    before: float | None
    after: float | None


def title(job: JobReport) -> str:
    """Return the name of a job: its recipe, and the values of its combination of a matrix."""
    values = ", ".join(f"{key}={value}" for key, value in job.matrix.items())
    return f"{job.recipe or job.id}{f' ({values})' if values else ''}"


def higher_is_better(metric: str) -> bool:
    """Return whether a metric's name means that higher is better (agreement, accuracy, throughput)."""
    return _HIGHER.search(metric) is not None


def is_speed(metric: str) -> bool:
    """Return whether a metric is a latency or a throughput."""
    return _SPEED.search(metric) is not None


def is_evaluation(step: StepReport) -> bool:
    return step.produces == "metrics"


def series(job: JobReport) -> tuple[Series, ...]:
    """Return a series for each metric of evaluations but counts; two ways of measuring make two series."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for step in job.steps:
        if is_evaluation(step):
            for metric, value in units.shown(step.metrics.items()):
                if isinstance(value, int | float):
                    found.setdefault((metric, step.measures), []).append(Measured(step.id, step.input, float(value)))
    names = [metric for metric, _ in found]
    return tuple(
        Series(metric, label(metric) + (f" ({points[0].step})" if names.count(metric) > 1 else ""), tuple(points))
        for (metric, _), points in found.items()
    )


def label(metric: str) -> str:
    return metric.replace("_", " ")


def changes(all_series: Sequence[Series], step: StepReport) -> tuple[Change, ...]:
    """Return how a step changed quality: each metric measured on its output, with its value on the input."""
    found = []
    for one in all_series:
        before = next((point.value for point in one.points if point.of == step.input), None)
        after = next((point.value for point in one.points if point.of == step.id), None)
        if after is not None and not is_evaluation(step):
            found.append(Change(one.label, before, after))
    return tuple(found)


def headline(all_series: Sequence[Series]) -> Change | None:
    """Return the metric for the headline: perplexity, else the first with a before and an after, else the first."""
    ranked = sorted(all_series, key=lambda one: (one.metric != "perplexity", len(one.points) < 2))
    if not ranked:
        return None
    points = ranked[0].points
    first = points[0].value if len(points) > 1 or points[0].of == MODEL else None
    return Change(ranked[0].label, first, points[-1].value if len(points) > 1 or first is None else None)


def percent(before: float, after: float) -> str:
    """Return the change as `+3.3 %`, `−60 %`; empty where it is undefined."""
    if not (math.isfinite(before) and math.isfinite(after)) or before == 0:
        return ""
    change = (after - before) / abs(before) * 100
    text = f"{abs(change):.1f}" if abs(change) < 9.95 else f"{abs(change):.0f}"
    sign = "±" if float(text) == 0 else "+" if change > 0 else "−"
    return f"{sign}{text} %"


def times_smaller(before: int | None, after: int | None) -> str:
    """Return `2.5 times smaller`, `1.2 times larger`, `as large as before`; empty where a size is not known."""
    if not before or not after:
        return ""
    ratio = before / after
    if 1 / 1.05 < ratio < 1.05:
        return "as large as before"
    return f"{ratio:.1f} times smaller" if ratio > 1 else f"{1 / ratio:.1f} times larger"


def gates(job: JobReport) -> tuple[tuple[StepReport, Event], ...]:
    return tuple((step, gate) for step in job.steps for gate in step.gates)


def gate_sentence(gate: Event) -> str:
    """Return a sentence: the value, its limit, and the distance to it."""
    return board.gate_text(gate).partition(": ")[2]


def verdict(job: JobReport) -> Verdict:
    """Return the verdict on a job: a level, a headline word, and one or two sentences."""
    judged = gates(job)
    missed = [(step, gate) for step, gate in judged if board.is_missed(gate)]
    if job.status == "gate-missed" or (missed and job.status == "done"):
        text = "; ".join(f"Step {step.id}: {gate_sentence(gate)}" for step, gate in missed)
        return Verdict("bad", "gate missed", f"{text or 'A quality gate was missed'}. Everything is kept.")
    if job.status == "failed":
        failed = next((step for step in job.steps if step.failure is not None), None)
        if failed is None or failed.failure is None:
            return Verdict("bad", "failed", f"The job stopped with exit code {job.exit_code}.")
        return Verdict("bad", "failed", f"Step {failed.id} failed: {failed.failure['error']}")
    if job.status == "interrupted":
        done = sum(step.digest is not None for step in job.steps)
        text = f"{done} of {units.plural(len(job.steps), 'step')} {'is' if done == 1 else 'are'} finished and kept"
        return Verdict("warn", "interrupted", f"{text}; the same command continues from there.")
    if job.status != "done":
        return Verdict("idle", job.status, "The job has not ended." if job.status == "running" else "Nothing ran yet.")
    warned = [(step, gate) for step, gate in judged if not gate.get("passed")]
    passed = f"{'Its one gate' if len(judged) == 1 else f'All {len(judged)} gates'} passed." if judged else "No gates."
    if warned:
        text = "; ".join(f"Step {step.id}: {gate_sentence(gate)}" for step, gate in warned)
        count = f"{len(judged) - len(warned)} of {units.plural(len(judged), 'gate')} passed"
        return Verdict("warn", "done with a warning", f"{count}. {text}.")
    smaller = times_smaller(job.size_before, job.size_after)
    main = headline(series(job))
    parts = [f"The weights are {smaller}"] if smaller else []
    if main is not None and main.before is not None and main.after is not None:
        went = f"{main.label} went from {units.number(main.before)} to {units.number(main.after)}"
        change = percent(main.before, main.after)
        parts.append(went + (f" ({change})" if change else ""))
    if growth.is_larger(job):
        cause = growth.cause(job)
        text = " ".join([f"{', '.join(parts)}.", *([cause] if cause else []), passed])
        return Verdict("warn", "larger", text)
    return Verdict("good", "done", " ".join([passed, *([f"{', '.join(parts)}."] if parts else [])]))
