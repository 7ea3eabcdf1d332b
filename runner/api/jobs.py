"""The jobs of a jobs folder: how they ended, what their steps measured, what came out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runner import wording
from runner.api.folders import jobs_folder
from runner.errors import UsageError
from runner.job import listing, records, verification
from runner.job.directory import read_json
from runner.job.listing import JobSummary
from runner.job.records import Record
from runner.job.verification import Check
from runner.progress.events import Event
from runner.report import job_report
from runner.report.html import publish
from runner.report.job_report import JobReport, StepReport


@dataclass(frozen=True)
class Gate:
    """A quality gate of a step, judged: `rule` is the rule in words, `value` and `limit` are NaN where unknown."""

    step: str
    metric: str
    value: float
    limit: float
    rule: str
    passed: bool


class Job:
    """A job in a jobs folder. Every property reads the folder again, so that a running job can be watched.

    `name` is an id, the beginning of exactly one, or the folder of a job; `jobs` is the jobs folder (default:
    `$RUNNER_JOBS`, or `jobs`), which the folder of a job makes needless.

    Raises UsageError where there is no such job, or several.
    """

    def __init__(self, name: str | os.PathLike[str], jobs: str | os.PathLike[str] | None = None) -> None:
        folder = Path(name)
        if (folder / "plan.json").is_file():
            folder = folder.resolve()
            self.jobs, self.id = folder.parent, folder.name
        else:
            self.jobs = jobs_folder(jobs)
            self.id = listing.find(self.jobs, os.fspath(name))

    def __repr__(self) -> str:
        return f"<runner.Job {self.id}: {self.status}>"

    @property
    def path(self) -> Path:
        """The job's folder."""
        return self.jobs / self.id

    @property
    def summary(self) -> JobSummary:
        """The job in short: recipe, matrix, status, times, sizes, and who applies it now."""
        return listing.load(self.jobs, self.id)

    @property
    def status(self) -> str:
        """How the last run ended: "done", "failed", "gate-missed", "interrupted"; "running", or "new" before any."""
        return self.summary.status

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last run (docs/exit-codes.md); None while it runs."""
        return self.summary.exit_code

    @property
    def steps(self) -> tuple[StepReport, ...]:
        """Every step of the plan in order: its state, metrics, times, sizes, gates, errors by layer."""
        return self.report.steps

    def step(self, id: str) -> StepReport:
        """Return one step. UsageError names the steps of the job where it has none of that id."""
        steps = self.steps
        found = next((step for step in steps if step.id == id), None)
        if found is None:
            help = f"its steps are {wording.ticked([step.id for step in steps])}"
            raise UsageError(f"job `{self.id}` has no step `{id}`", help)
        return found

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of every step that measured any, by its id: `job.metrics["quality"]["perplexity"]`."""
        return {step.id: dict(step.metrics) for step in self.steps if step.metrics}

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The verdicts on the quality gates of the last run, in order."""
        return tuple(
            Gate(step.id, gate["metric"], gate["value"], gate["limit"], gate["rule"], gate["passed"])
            for step in self.steps
            for gate in step.gates
        )

    @property
    def records(self) -> dict[str, Record]:
        """The record of every finished step by its id: key, digests, files, environment.

        Steps whose record is missing, torn or changed are left out; `verify` reports why.
        """
        found = {}
        for step in read_json(self.path / "plan.json").get("steps", []):
            path = self.path / "steps" / step["folder"] / "record.json"
            try:
                found[step["id"]] = records.parse(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
        return found

    @property
    def output(self) -> Path | None:
        """The folder of the last checkpoint or engine that the job made; None before there is one."""
        path = self.path / "output"
        return path if path.is_dir() else None

    @property
    def events(self) -> list[Event]:
        """Every event of every run, oldest first (see runner/progress/events.py)."""
        return job_report.events(self.path / "events.jsonl")

    @property
    def report(self) -> JobReport:
        """All that the records hold, read once: use one report where several values must be of the same moment."""
        return job_report.read(self.jobs, self.id)

    def write_report(self, page: str | os.PathLike[str] | None = None) -> Path:
        """Write report.html and report.json in the job's folder, or only the page at `page`; return the page's path.

        Raises OSError where it cannot be written.
        """
        if page is not None:
            publish.html(self.report, Path(page))
            return Path(page)
        publish.write(self.report)
        return self.path / publish.HTML

    def verify(self) -> list[Check]:
        """Hash every file of the job again and compare it with the records; a check with a `reason` failed."""
        return verification.verify(self.jobs, self.id)

    def remove(self, *, keep_store: bool = False) -> int:
        """Remove the job, and the results in the store that no other job uses; return the bytes freed.

        Raises UsageError while the job is being applied.
        """
        return listing.remove(self.jobs, self.id, entries=not keep_store)


def jobs(folder: str | os.PathLike[str] | None = None) -> list[Job]:
    """List the jobs of a jobs folder (default: `$RUNNER_JOBS`, or `jobs`), the one that started last at the end."""
    return [Job(summary.path) for summary in listing.jobs(jobs_folder(folder))]
