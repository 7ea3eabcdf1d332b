"""What `apply` leaves for others to read: report files, the summary on GitHub Actions, JUnit. None can fail a job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from runner.errors import RunnerError

if TYPE_CHECKING:
    from runner.commands.several import Outcome
    from runner.progress.events import Sink
    from runner.recipe.types import Recipe
    from runner.report.ci.junit import Refused


def sink(shown: Sink | None, how: str, recipe: Recipe) -> Sink | None:
    """The sink to use: on GitHub Actions one that annotates too, elsewhere `shown`. jsonl keeps stdout to itself."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return shown
    from runner.report.ci.github import Annotations

    stream: TextIO = sys.stderr if how == "jsonl" else sys.stdout
    return Annotations(shown, stream, recipe, grouped=how == "plain")


def write(root: Path, id: str) -> None:
    """The report files of a job, and its summary on GitHub Actions. What goes wrong is a warning."""

    def work() -> None:
        from runner.api.jobs import Job
        from runner.report.ci import github

        job = Job(id, root)
        job.write_report()
        github.summarize(job.report)

    if (root / id / "plan.json").is_file():
        _attempt(work, f"the report of {id} could not be written")


def write_junit(path: Path | None, root: Path, jobs: Sequence[str | Refused]) -> None:
    """The JUnit file of these jobs, by id; nothing where none was asked for."""
    if path is None:
        return

    def work() -> None:
        from runner.report import job_report
        from runner.report.ci import junit

        path.parent.mkdir(parents=True, exist_ok=True)
        junit.write(path, [job_report.read(root, entry) if isinstance(entry, str) else entry for entry in jobs])

    _attempt(work, f"{path} could not be written")


def of_outcomes(outcomes: Sequence[Outcome]) -> list[str | Refused]:
    """The job of each outcome, or why there is none."""
    from runner.report.ci.junit import Refused

    return [o.job or Refused(o.name, o.text or o.verdict, o.exit_code) for o in outcomes]


def of_error(name: str, error: RunnerError) -> Refused:
    from runner.report.ci.junit import Refused

    return Refused(name, error.render(), error.exit_code)


def _attempt(work: Callable[[], None], what: str) -> None:
    try:
        work()
    except Exception as error:  # a job that is done stays done
        if os.environ.get("RUNNER_DEBUG") == "1":
            raise
        reason = str(error).partition("\n")[0]
        print(f"warning: {what}: {type(error).__name__}: {reason}", file=sys.stderr)
