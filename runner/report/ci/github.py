"""Output for GitHub Actions: annotations at lines of the recipe, groups in the log, a summary of every job.

Workflow commands are lines on stdout or stderr:
https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TextIO

from runner.errors import Diagnostic, RunnerError, Span
from runner.progress import board, units
from runner.progress.events import Event, Sink
from runner.recipe import secrets
from runner.recipe.types import Recipe
from runner.report import findings, report_json
from runner.report.job_report import JobReport, StepReport

SUMMARY_LIMIT = 1024 * 1024  # bytes of all summaries of one workflow step
_ICONS = {"good": "✅", "bad": "❌", "warn": "⚠️", "idle": "⚪"}
_VERDICTS = {"good": "✅", "warn": "⚠️", "bad": "❌"}  # of gates


def active() -> bool:
    """Return whether this process runs in a workflow of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def command(level: str, message: str, span: Span | None = None, title: str = "") -> str:
    """Return a workflow command that annotates a place: `::error file=…,line=…,col=…,title=…::message`."""
    properties = {"title": title}
    if span is not None:
        file = {"file": _in_workspace(span.file), "line": str(span.line), "col": str(span.column)}
        properties = {**file, "endColumn": str(span.column + max(1, span.length)), **properties}
    written = ",".join(f"{key}={_property(value)}" for key, value in properties.items() if value)
    return f"::{level}{' ' if written else ''}{written}::{_data(message)}"


def complain(error: RunnerError, stream: TextIO) -> None:
    """Annotate every complaint of an error at its place; do nothing outside of GitHub Actions."""
    if not active():
        return
    found = getattr(error, "diagnostics", ()) or (Diagnostic("", error.message, error.help),)
    for complaint in found:
        text = complaint.message + (f"\n{complaint.help}" if complaint.help else "")
        text = secrets.hide_in_text(text, complaint.span.text if complaint.span else "")
        level = "warning" if complaint.severity == "warning" else "error"
        print(command(level, text, complaint.span, complaint.code or "runner"), file=stream)


class Annotations:
    """A sink around another: groups the log by steps, and annotates failures, missed gates and warnings.

    `grouped` is true where `inner` writes lines to the same stream. A closed stream stops the output, never the job.
    """

    def __init__(self, inner: Sink | None, stream: TextIO, recipe: Recipe, *, grouped: bool) -> None:
        self._inner, self._stream, self._recipe, self._grouped = inner, stream, recipe, grouped
        self._known = secrets.values(recipe.document)
        self._open = False

    def send(self, event: Event) -> None:
        name = event["event"]
        if name == "step_started" and self._grouped:
            self._ungroup()
            self._write(f"::group::{_data(str(event['id']))} ({_data(str(event['kind']))})")
            self._open = True
        if name in ("job_finished", "interrupted", "step_cached"):
            self._ungroup()
        if self._inner is not None:
            self._inner.send(event)
        if name in ("step_finished", "step_failed"):
            self._ungroup()
        annotation = self._annotation(event)
        if annotation is not None:
            self._write(annotation)

    def close(self) -> None:
        self._ungroup()
        if self._inner is not None:
            self._inner.close()

    def _annotation(self, event: Event) -> str | None:
        name = event["event"]
        if name == "step_failed":
            text = "\n".join(board.failure_lines(event))
            return command("error", self._hide(text), self._place(event), f"{event['id']} failed")
        if name == "gate" and not event["passed"]:
            place = self._place(event, "gates", str(event["metric"]))
            level = "error" if board.is_missed(event) else "warning"
            title = f"{event['id']}: gate {board.gate_word(event)}"
            return command(level, self._hide(findings.gate_sentence(event)), place, title)
        if name == "message" and event.get("level") == "warning":
            return command("warning", self._hide(str(event["text"])), self._place(event), "runner")
        return None

    def _place(self, event: Event, *path: str) -> Span | None:
        """Return the place of the event's step in the recipe, or of a value of it."""
        index = event.get("step")
        if index is None or not 0 <= index < len(self._recipe.steps):
            return None
        return self._recipe.step_span(self._recipe.steps[index], path)

    def _hide(self, text: str) -> str:
        return str(secrets.hide(text, self._known))

    def _ungroup(self) -> None:
        if self._open:
            self._write("::endgroup::")
            self._open = False

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._grouped = self._open = False


def summarize(job: JobReport) -> None:
    """Append the job to $GITHUB_STEP_SUMMARY, where there is one. OSError where it cannot be written."""
    place = os.environ.get("GITHUB_STEP_SUMMARY", "")
    if not active() or not place:
        return
    path = Path(place)
    present = path.stat().st_size if path.exists() else 0
    for text in (markdown(job), markdown(job, steps=False)):
        if present + len(text.encode()) <= SUMMARY_LIMIT:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)
            return


def markdown(job: JobReport, *, steps: bool = True) -> str:
    """Return the job in Markdown: verdict, gates and, with `steps`, a table of them."""
    job = report_json.public(job)
    verdict = findings.verdict(job)
    lines = [f"### {_ICONS[verdict.level]} {_cell(findings.title(job))}: {verdict.word}", "", _cell(verdict.text), ""]
    for step, gate in findings.gates(job):
        lines.append(f"- {_VERDICTS[board.gate_level(gate)]} {_cell(step.id)}: {_cell(findings.gate_sentence(gate))}")
    if findings.gates(job):
        lines.append("")
    if steps:
        lines += ["| step | kind | state | time | memory | size | metrics |", "|---|---|---|--:|--:|--:|---|"]
        lines += [f"| {' | '.join(_cell(text) for text in _row(step))} |" for step in job.steps]
        lines.append("")
    return "\n".join([*lines, f"Job {_cell(job.id)}, model {_cell(job.model)}.", "", ""])


def _row(step: StepReport) -> list[str]:
    return [
        step.id, step.kind, step.state, units.duration(step.seconds) if step.seconds is not None else "",
        units.size(step.memory) if step.memory else "", units.size(step.size) if step.size else "",
        units.metrics((name, value) for name, value in step.metrics.items() if name != "bytes"),
    ]  # fmt: skip


def _cell(text: str) -> str:
    """Escape the text of a table cell or a line; only code between backticks is markup."""
    text = " ".join(text.split())
    if text.count("`") % 2:
        return _plain(text)
    return "`".join(part.replace("|", "\\|") if i % 2 else _plain(part) for i, part in enumerate(text.split("`")))


def _plain(text: str) -> str:
    escaped = re.sub(r"[\\|*_\[\]#~$]", lambda sign: "\\" + sign[0], text)
    return escaped.replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;").replace("`", "&#96;")


def _in_workspace(file: str) -> str:
    """Return a path relative to the checkout, if it is inside, as annotations need it."""
    workspace = os.environ.get("GITHUB_WORKSPACE", "")
    absolute = Path(os.path.abspath(file))
    if workspace and absolute.is_relative_to(os.path.abspath(workspace)):
        return absolute.relative_to(os.path.abspath(workspace)).as_posix()
    return file


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
