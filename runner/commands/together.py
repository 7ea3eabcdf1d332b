"""Apply several jobs at once: plan all of them, run their steps as one graph, and return the outcome of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from runner.commands import folders, reports, several
from runner.commands.folders import Task
from runner.commands.options import Resolving
from runner.commands.several import Outcome
from runner.errors import RunnerError

if TYPE_CHECKING:
    from runner.api.plans import JobPlan
    from runner.execute.application import End, Manner
    from runner.execute.settings import ApplySettings
    from runner.progress.board import Board
    from runner.progress.events import Sink


@dataclass(frozen=True)
class How:
    """How to apply: `progress` is "live", "plain", "jsonl" or "none"."""

    resolving: Resolving
    settings: ApplySettings
    progress: str
    manner: Manner


def run(tasks: Sequence[Task], how: How) -> list[Outcome]:
    """Apply every task, and return the outcomes in order. A task that cannot be planned costs the others nothing.

    Without `keep_going` nothing runs where one cannot be planned.
    """
    planned, refused = _plans(tasks, how)
    if not planned or (refused and not how.manner.keep_going):
        return [refused.get(index) or several.not_started(task) for index, task in enumerate(tasks)]
    done = apply_planned(tasks, planned, how)
    return [refused.get(index) or done[index] for index in range(len(tasks))]


def _plans(tasks: Sequence[Task], how: How) -> tuple[dict[int, JobPlan], dict[int, Outcome]]:
    """Return the plans, and the outcomes of tasks that cannot be planned, by the index of the task."""
    planned: dict[int, JobPlan] = {}
    refused: dict[int, Outcome] = {}
    for index, task in enumerate(tasks):
        try:
            if task.recipe is None:
                raise task.error or ValueError(task.file)
            planned[index] = folders.planned(task.recipe, how.resolving).with_models()
        except RunnerError as error:
            refused[index] = several.refused(task, error)
    return planned, refused


def apply_planned(tasks: Sequence[Task], planned: dict[int, JobPlan], how: How) -> dict[int, Outcome]:
    """Apply the plans of tasks, by their index, and return their outcomes likewise."""
    from runner.api import execution
    from runner.execute.stopping import Stopping
    from runner.progress.board import Board

    if how.progress != "jsonl":
        _show_totals([(tasks[index].name, plan) for index, plan in planned.items()])
    boards = [Board() for _ in planned]
    view = _View(how.progress, sys.stdout)
    sinks = [
        _sinks(view, board, tasks[index], plan, how.progress)
        for board, (index, plan) in zip(boards, planned.items(), strict=True)
    ]
    try:
        ends = execution.run_all(
            list(planned.values()), how.settings, sinks=sinks, stopping=Stopping(), manner=how.manner
        )  # fmt: skip
    finally:
        for own in sinks:
            for sink in own:
                sink.close()
        view.close()
        for plan in planned.values():
            reports.write(plan.jobs, plan.job_id)
    return {
        index: _outcome(tasks[index], board, end)
        for index, board, end in zip(planned, boards, ends, strict=True)
    }  # fmt: skip


def _sinks(view: _View, board: Board, task: Task, plan: JobPlan, progress: str) -> list[Sink]:
    shown = view.sink(task.name, plan.job_id)
    if task.recipe is not None:  # annotations of several jobs cannot be grouped
        shown = reports.sink(shown, "jsonl" if progress == "jsonl" else "together", task.recipe)
    return [board, *([shown] if shown is not None else [])]


def _outcome(task: Task, board: Board, end: End) -> Outcome:
    from runner.progress.board import reason

    if isinstance(end.error, RunnerError):
        return several.refused(task, end.error, board if board.job else None)
    if end.error is not None:
        raise end.error
    if end.code is None:
        return several.not_started(task)
    text = reason(board)
    return several.outcome(task, board, end.code, text, board.seconds or 0.0, timed_out=end.timed_out)


def _show_totals(planned: Sequence[tuple[str, JobPlan]]) -> None:
    from runner.commands import plan
    from runner.report.console import console, show

    found = plan.after_earlier_jobs([(name, each.preview) for name, each in planned])
    notes = dict.fromkeys(note for _, preview in found for note in preview.notes)
    show([plan.totals(found), *(f"note: {note}" for note in notes), ""], console())
    sys.stdout.flush()


class _View:
    """What shows the progress of all jobs on `stream`."""

    def __init__(self, progress: str, stream: TextIO) -> None:
        self._progress, self._stream = progress, stream
        self._live = None
        if progress == "live":
            from runner.progress.jobs_live import LiveJobs

            self._live = LiveJobs(stream)

    def sink(self, name: str, job: str) -> Sink | None:
        """Return the sink of one job; None where no progress is shown."""
        if self._live is not None:
            return self._live.sink(name)
        if self._progress == "plain":
            from runner.progress.plain import Plain

            return Plain(self._stream, name)
        if self._progress == "jsonl":
            from runner.progress.jsonl import JsonLines

            return JsonLines(self._stream, job)
        return None

    def close(self) -> None:
        if self._live is not None:
            self._live.close()
