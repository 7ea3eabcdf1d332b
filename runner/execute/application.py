"""Apply plans: run the steps of one job, or of several at once, and return how each ended.

All state is on the disk: a parent that is killed at any moment resumes when the plans are applied again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from runner.errors import RunnerError
from runner.execute.executor import Maker, Reports
from runner.execute.job_run import JobRun
from runner.execute.job_session import JobSession
from runner.execute.job_steps import JobSteps
from runner.execute.local import LocalExecutor
from runner.execute.scheduler import Scheduler
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job import accepted, files
from runner.job.claims import Claims
from runner.job.directory import JobDirectory
from runner.job.store import Store
from runner.plan.types import Plan, Preview
from runner.progress.events import Sink


@dataclass(frozen=True)
class Job:
    """A plan to apply. `preview` gives its events forecasts; `sinks`, which the caller closes, get all its events."""

    plan: Plan
    preview: Preview | None
    sinks: Sequence[Sink]


@dataclass(frozen=True)
class Manner:
    """How several jobs run. With `keep_going` False the first failure stops the other jobs at safe points.

    `timeout` is in seconds for each job. `executor` makes the executor; by default it is that of this machine.
    """

    keep_going: bool = True
    timeout: float | None = None
    executor: Maker | None = None


@dataclass(frozen=True)
class End:
    """How a job ended. `code` None: it was not started. `error`: what ended it, where no step failed."""

    code: int | None
    error: BaseException | None = None
    timed_out: bool = False


def apply(
    plan: Plan,
    preview: Preview | None,
    settings: ApplySettings,
    *,
    jobs_root: Path,
    sinks: Sequence[Sink],
    stopping: Stopping | None = None,
    executor: Maker | None = None,
) -> int:
    """Apply one plan and return the exit code. Every event goes to `sinks`, which the caller closes.

    `preview` gives the events their forecasts. `stopping` may hold a time limit, and records who asked to stop.
    `executor` makes the executor; by default it is that of this machine.

    Raises, before anything is computed, StoreError or MachineError when the jobs folder cannot be written, and
    UsageError for a gate that refers to a job that is not there; Interrupted where another process applies this plan
    and `settings` say not to wait.
    """
    stopping = stopping or Stopping()
    job, manner = Job(plan, preview, sinks), Manner(executor=executor)
    (end,) = apply_all([job], settings, jobs_root=jobs_root, stopping=stopping, manner=manner)
    if end.error is not None:
        raise end.error
    return stopping.exit_code if end.code is None else end.code


def apply_all(
    jobs: Sequence[Job],
    settings: ApplySettings,
    *,
    jobs_root: Path,
    stopping: Stopping,
    manner: Manner,
) -> list[End]:
    """Apply several plans with one executor, and return how each ended, in their order.

    Their steps form one graph: those that are ready run at once, as far as the executor has room, and a step that
    several jobs share runs once.

    Raises StoreError or MachineError when the jobs folder cannot be written. What ends single jobs, such as a gate that
    refers to a job that is not there, is in their ends.
    """
    root = jobs_root.absolute()
    store = Store(root / "store")
    store.prepare()
    reports: Reports = SimpleQueue()
    executor = manner.executor(reports) if manner.executor else LocalExecutor(reports, settings.jobs_at_once)
    claims = Claims(settings.remote, settings.command) if settings.remote else None
    prepared = [_prepare(job, settings, store, stopping, claims) for job in jobs]
    try:
        with stopping.installed():
            started = [steps for steps in prepared if isinstance(steps, JobSteps)]
            Scheduler(started, executor, reports, stopping, manner.keep_going, manner.timeout).work()
    finally:
        if claims is not None:
            claims.close()
    return [_end(steps, root) for steps in prepared]


def _prepare(
    job: Job, settings: ApplySettings, store: Store, stopping: Stopping, claims: Claims | None
) -> JobSteps | RunnerError:
    root = store.root.parent
    try:
        references = accepted.gate_references(settings.gates_root or root, job.plan)
    except RunnerError as error:
        return error
    directory = JobDirectory(root, job.plan.job_id)
    run = JobRun(job.plan, directory, store, settings, stopping, job.sinks, references, claims)
    return JobSteps(JobSession(run, job.preview))


def _end(steps: JobSteps | RunnerError, root: Path) -> End:
    if isinstance(steps, RunnerError):
        return End(steps.exit_code, steps)
    error = steps.error
    if isinstance(error, OSError) and files.is_full(error):
        full = files.full_disk(root)
        full.__cause__ = error
        error = full
    started = steps.session.was_opened or error is not None
    return End(steps.code if started else None, error, steps.timed_out)
