"""Write what `apply` reports: report files, the summary on GitHub Actions, JUnit. None of them can fail a job."""

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
    """Return `shown`; on GitHub Actions, a sink that also annotates (on stderr where stdout holds only JSON lines)."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return shown
    from runner.report.ci.github import Annotations

    stream: TextIO = sys.stderr if how == "jsonl" else sys.stdout
    return Annotations(shown, stream, recipe, grouped=how == "plain")


def write(root: Path, id: str) -> None:
    """Write the report files of a job, and its summary on GitHub Actions. An error becomes a warning."""

    def work() -> None:
        from runner.api.jobs import Job
        from runner.report.ci import github

        job = Job(id, root)
        job.write_report()
        github.summarize(job.report)

    if (root / id / "plan.json").is_file():
        _attempt(work, f"the report of {id} could not be written")


def write_junit(path: Path | None, root: Path, jobs: Sequence[str | Refused]) -> None:
    """Write the JUnit file of these jobs, named by id; do nothing where `path` is None."""
    if path is None:
        return

    def work() -> None:
        from runner.report import job_report
        from runner.report.ci import junit

        path.parent.mkdir(parents=True, exist_ok=True)
        junit.write(path, [job_report.read(root, entry) if isinstance(entry, str) else entry for entry in jobs])

    _attempt(work, f"{path} could not be written")


def junit_jobs(outcomes: Sequence[Outcome]) -> list[str | Refused]:
    """Return the job id of each outcome, or why there is no job."""
    from runner.report.ci.junit import Refused

    return [o.job or Refused(o.name, o.text or o.verdict, o.exit_code) for o in outcomes]


def refused(name: str, error: RunnerError) -> Refused:
    from runner.report.ci.junit import Refused

    return Refused(name, error.render(), error.exit_code)


def _attempt(work: Callable[[], None], what: str) -> None:
    try:
        work()
    except Exception as error:  # an error in a report must not fail a finished job
        if os.environ.get("RUNNER_DEBUG") == "1":
            raise
        reason = str(error).partition("\n")[0]
        print(f"warning: {what}: {type(error).__name__}: {reason}", file=sys.stderr)
