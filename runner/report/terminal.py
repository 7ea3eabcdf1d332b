"""The text of `runner report`."""

from __future__ import annotations

import math
import os
from pathlib import Path

from rich.text import Text

from runner.progress import board, frame, units
from runner.progress.frame import ICONS
from runner.report import assigned_bits, delicate, findings, growth, loading, tensor_account
from runner.report.job_report import JobReport, StepReport
from runner.report.table import table

STATUS_STYLES = {"done": "green", "failed": "bold red", "gate-missed": "bold red", "interrupted": "yellow"}


def lines(job: JobReport, width: int) -> list[Text]:
    """Return the lines of the report."""
    return [*_heading(job), Text(), *_steps(job, width), Text(), *ending(job.output, job.size_before, job.size_after)]


def ending(output: Path | None, before: int | None = None, after: int | None = None) -> list[Text]:
    """Return where the output is, its size, and how to load it."""
    if output is None:
        return [Text("no checkpoint came out of this job", "dim")]
    result = []
    if after:
        size = f"size    {units.size(before)} → {units.size(after)}" if before else f"size    {units.size(after)}"
        ratio = findings.times_smaller(before, after)
        style = "bold yellow" if ratio.endswith("larger") else ""
        result.append(Text(size + (f", {ratio}" if ratio.endswith("er") else ""), style))
    result += [Text(f"output  {_short(output)}"), Text(f"load    {loading.line(output)}")]
    checkpoint = loading.checkpoint(output)
    if checkpoint is not None:
        result.append(Text(f"before  {_short(checkpoint)}, the last checkpoint"))
        result.append(Text(f"load    {loading.line(checkpoint)}"))
    return result


def _heading(job: JobReport) -> list[Text]:
    line = Text(job.id, "bold")
    line.append(f"  {job.status}", STATUS_STYLES.get(job.status, "not bold"))
    larger = growth.is_larger(job)
    if (size := findings.times_smaller(job.size_before, job.size_after)).endswith("er"):  # smaller or larger
        line.append(f"  {size}", "bold yellow" if larger else "not bold")
    facts = [f"model {job.model}"]
    facts += [f"started {job.started}"] if job.started else []
    facts += [f"took {units.duration(job.seconds)}"] if job.seconds is not None else []
    facts += [f"peak memory {units.size(job.memory)}"] if job.memory else []
    cause = [Text(growth.cause(job), "yellow")] if larger else []
    return [line, *cause, Text(", ".join(facts)), Text(f"folder {_short(job.path)}")]


def _steps(job: JobReport, width: int) -> list[Text]:
    rows: list[list[Text | str]] = [["", "step", "kind", "state", "time", "memory", "size", "metrics"]]
    grown = growth.step(job)
    for step in job.steps:
        missed = any(board.is_missed(gate) for gate in step.gates)
        icon, style = ("✗", "bold red") if missed else ("!", "bold yellow") if step is grown else ICONS[step.state]
        rows.append([
            Text(icon, style), step.id, Text(step.kind, "dim"), step.state,
            units.duration(step.seconds) if step.seconds is not None else "",
            units.size(step.memory) if step.memory else "", units.size(step.size) if step.size else "",
            units.metrics((name, value) for name, value in step.metrics.items() if name != "bytes"),
        ])  # fmt: skip
    result = table(rows, width, "<<<<>>><", head=True)
    for step in job.steps:
        result += _more(step, width)
    return result


def _more(step: StepReport, width: int) -> list[Text]:
    """Return the lines below the table for a step: errors by layer, tensors, gates, the failure."""
    known = [error for error in step.errors if error is not None and math.isfinite(error)]
    result = []
    if known:
        text = Text(f" {step.id}: error by layer ")
        text.append(units.sparkline(step.errors, max(8, min(80, width - text.cell_len - 20))), "magenta")
        text.append(f" {board.figure(min(known))} to {board.figure(max(known))}")
        result.append(text)
    if step.sensitivity is not None:
        result += table([[f"{step.id}: {text}"] for text in delicate.sentences(step.sensitivity)], width, indent=1)
    if step.assignment is not None:
        result.append(Text(f" {step.id}: {assigned_bits.line(step.assignment)}"))
    if step.tensors:
        result.append(Text(f" {step.id}: tensors: {tensor_account.line(step.tensors)}"))
    for gate in step.gates:
        style = frame.GATE_STYLES[board.gate_level(gate)]
        result.append(Text(f" {step.id}: {board.gate_text(gate)}", style))
    if step.failure is not None:
        error, *rest = board.failure_lines(step.failure)
        result += [Text(f" {step.id}: {error}", "red"), *(Text(f"   {line}") for line in rest)]
    return result


def _short(path: Path) -> str:
    """Return a path relative to the working folder if it is inside, else the absolute path."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
