"""Apply several jobs one after another, print a summary, and return the worst exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from runner.commands.folders import Task
from runner.errors import GateFailed, Interrupted, MachineError, RunnerError, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from runner.execute.stopping import Stopping
    from runner.progress.board import Board

ENDED = 130
# The worst first: what only a person can fix comes before what the same command fixes by itself (75 alone means "run it
# again").
ORDER = (ENDED, 1, MachineError.exit_code, UsageError.exit_code, GateFailed.exit_code, Interrupted.exit_code, 0)
_VERDICTS = {
    0: "done", 1: "failed", 2: "recipe wrong", 3: "gate missed", 4: "machine cannot", 75: "interrupted", ENDED: "ended",
}  # fmt: skip
NOT_STARTED = "not started"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job. `run` and `cached` count its steps; `text` names the gate, step or complaint."""

    name: str
    file: str
    job: str | None
    directory: str | None
    verdict: str
    exit_code: int | None
    seconds: float
    run: int
    cached: int
    text: str


@dataclass(frozen=True)
class Applied:
    """The result of applying one job."""

    code: int
    board: Board


One = Callable[[Task, "Stopping"], Applied]


def worst(codes: Sequence[int]) -> int:
    """Return the exit code of all jobs together, by ORDER; a code that is not in it counts as 1."""
    ranks = [ORDER.index(code) if code in ORDER else 1 for code in codes]
    return ORDER[min(ranks, default=len(ORDER) - 1)]


def run(tasks: Sequence[Task], one: One, *, keep_going: bool, timeout: float | None) -> list[Outcome]:
    """Apply every task with `one`, and return an outcome for each.

    A signal ends the run after the job that it stops; so does a failure without `keep_going`. Jobs that were not
    started have an outcome too.
    """
    from runner.execute.stopping import Stopping

    between = Stopping()
    between.on_force = _end
    outcomes: list[Outcome] = []
    stopped = False
    with between.installed():
        for task in tasks:
            if stopped or between.asked:
                outcomes.append(not_started(task))
                continue
            stopping = Stopping(timeout)
            ended = _outcome(task, one, stopping)
            outcomes.append(ended)
            stopped = stopping.by is not None or (ended.exit_code != 0 and not keep_going)
    return outcomes


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return the worst exit code; a job that was not started counts as interrupted."""
    return worst([o.exit_code if o.exit_code is not None else Interrupted.exit_code for o in outcomes])


def _end() -> None:
    raise KeyboardInterrupt


def _outcome(task: Task, one: One, stopping: Stopping) -> Outcome:
    from runner.progress.board import reason

    clock = time.perf_counter()
    board: Board | None = None
    try:
        if task.error is not None:
            raise task.error
        applied = one(task, stopping)
        code, board, text = applied.code, applied.board, reason(applied.board)
    except RunnerError as error:
        print(error.render(), file=sys.stderr)
        _annotate(error)
        code, text = error.exit_code, _first(error)
    except KeyboardInterrupt:
        code, text = ENDED, ""
    except Exception as error:  # an error in one recipe must not stop the next
        if os.environ.get("RUNNER_DEBUG") == "1":
            raise
        from runner.commands import crash

        code, text = crash.report(error, [task.file]), f"{type(error).__name__}: {error}".splitlines()[0]
    seconds = round(time.perf_counter() - clock, 3)
    return outcome(task, board, code, text, seconds, timed_out=stopping.timed_out)


def outcome(task: Task, board: Board | None, code: int, text: str, seconds: float, *, timed_out: bool) -> Outcome:
    """Return the outcome of a job that ended with `code`. `board` None: there is no job; `text` says why it ended."""
    steps = list(board.steps.values()) if board is not None else []
    timed_out = timed_out and code == Interrupted.exit_code
    return Outcome(
        name=task.name,
        file=task.file,
        job=board.job if board is not None else None,
        directory=board.directory if board is not None else None,
        verdict="timed out" if timed_out else _VERDICTS.get(code, "failed"),
        exit_code=code,
        seconds=seconds,
        run=sum(step.state == "done" for step in steps),
        cached=sum(step.state == "cached" for step in steps),
        text="stopped at a safe point" if timed_out else text,
    )


def not_started(task: Task) -> Outcome:
    return Outcome(task.name, task.file, None, None, NOT_STARTED, None, 0.0, 0, 0, "")


def refused(task: Task, error: RunnerError, board: Board | None = None) -> Outcome:
    """Print the error that ended a job, and return its outcome."""
    print(error.render(), file=sys.stderr)
    _annotate(error)
    return outcome(task, board, error.exit_code, _first(error), 0.0, timed_out=False)


def _annotate(error: RunnerError) -> None:
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from runner.report.ci import github

        github.complain(error, sys.stderr)


def _first(error: RunnerError) -> str:
    """Return the first complaint in one line; all of them were printed already."""
    from runner.errors import RecipeError

    if isinstance(error, RecipeError) and error.diagnostics:
        first, *more = error.diagnostics
        place = f"{first.span.file}:{first.span.line}: " if first.span is not None else ""
        further = f" (and {len(more)} more)" if more else ""
        return f"{place}{first.message}{further}"
    return error.message.splitlines()[0]


def summary(outcomes: Sequence[Outcome], width: int, command: str, took: float | None = None) -> list[Text | str]:
    """Return the table of outcomes, and the command to continue with where a job is unfinished.

    `took`: the seconds of all together, where they ran at once.
    """
    from rich.text import Text

    from runner.progress import units
    from runner.report.table import Cell, table

    done = sum(o.exit_code == 0 for o in outcomes)
    seconds = sum(o.seconds for o in outcomes) if took is None else took
    rows: list[list[Cell]] = [["recipe", "verdict", "took", "run", "cached", "what"]]
    for o in outcomes:
        style = "green" if o.exit_code == 0 else "yellow" if o.exit_code in (75, None) else "bold red"
        lasted = units.duration(o.seconds) if o.exit_code is not None else ""
        counts = [str(o.run), str(o.cached)] if o.exit_code is not None else ["", ""]
        rows.append([o.name, Text(o.verdict, style), lasted, *counts, o.text])
    style = "green" if done == len(outcomes) else "bold red"
    lines: list[Text | str] = [
        Text(f"{done} of {units.plural(len(outcomes), 'job')} done in {units.duration(seconds)}", style),
        *table(rows, width, "<<>>><", head=True),
    ]
    if exit_code(outcomes) != 0 and any(o.exit_code in (75, ENDED, None) for o in outcomes):
        lines += ["", "finished steps are in the store; continue with:", f"  {command}"]
    return lines


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    return [asdict(each) for each in outcomes]
