"""Apply a plan: lock its job, run its steps, and write its output, provenance and state.

All state is on the disk: a parent that is killed at any moment resumes when the plan is applied again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from runner.contracts.step_kind import METRICS_ONLY
from runner.errors import GateFailed, Interrupted, MachineError, RunnerError, StoreError
from runner.execute.job_run import JobRun
from runner.execute.local import LocalExecutor
from runner.execute.scheduler import Scheduler
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job import accepted, files, provenance, records
from runner.job.directory import JobDirectory, JobState
from runner.job.entries import StoreEntry
from runner.job.store import Store
from runner.plan.types import Forecast, Plan, Preview
from runner.progress.events import Sink, make
from runner.progress.jsonl import JsonLines

_STATUS = {0: "done", GateFailed.exit_code: "gate-missed", Interrupted.exit_code: "interrupted", 130: "interrupted"}


def apply(
    plan: Plan,
    preview: Preview | None,
    settings: ApplySettings,
    *,
    jobs_root: Path,
    sinks: Sequence[Sink],
    stopping: Stopping | None = None,
) -> int:
    """Apply a plan on this machine and return the exit code. Every event goes to `sinks`, which the caller closes.

    `preview` gives the events their forecasts. `stopping` may hold a time limit, and records who asked to stop.

    Raises, before anything is computed, StoreError or MachineError when the jobs folder cannot be written, and
    UsageError for a gate that refers to a job that is not there; Interrupted where another process applies this plan
    and `settings` say not to wait.
    """
    jobs_root = jobs_root.absolute()
    references = accepted.gate_references(settings.gates_root or jobs_root, plan)
    store = Store(jobs_root / "store")
    store.prepare()
    stopping = stopping or Stopping()
    with stopping.installed():
        try:
            directory = JobDirectory.create(jobs_root, plan)
            run = JobRun(plan, directory, store, settings, stopping, sinks, references)
            lock = directory.lock(settings.command)
            if not lock.acquire(
                wait=settings.wait,
                stop=stopping.is_asked,
                on_wait=lambda holder: run.send(make("waiting", step=None, holder=str(holder))),
            ):
                return _end_without_lock(run)
            try:
                directory.refresh(plan)
                with _appending(directory.events) as log:
                    return _run(replace(run, sinks=[*sinks, JsonLines(log)]), preview)
            finally:
                lock.release()
        except OSError as error:
            if files.is_full(error):
                raise files.full_disk(jobs_root) from error
            raise


def _end_without_lock(run: JobRun) -> int:
    """End without the lock: a stop was asked for while waiting, or `settings.wait` is False."""
    if not run.stopping.asked:
        message = f"another apply of this plan is running: {run.directory.holder()}"
        raise Interrupted(message, f"when it has ended: {run.settings.command}")
    run.send(make("interrupted", step=None, resume=run.settings.command))
    return run.stopping.exit_code


def _run(run: JobRun, preview: Preview | None) -> int:
    """Run the steps between the events job_started and job_finished; return the exit code, and write it to job.json."""
    plan, directory = run.plan, run.directory
    clock = time.perf_counter()
    state = JobState("running", None, records.now(), None, None, None, run.settings.command, os.getpid())
    directory.write_state(state)
    steps = _steps(plan, preview)
    run.send(make("job_started", job=plan.job_id, name=plan.recipe.name, directory=str(directory.path), steps=steps))
    executor = LocalExecutor(run)
    code = 1
    try:
        scheduler = Scheduler(run, executor)
        code = scheduler.work()
        _finish(run, scheduler.entries, code, state.started)
    except RunnerError as error:
        code = error.exit_code
        raise
    except OSError as error:
        code = MachineError.exit_code if files.is_full(error) else StoreError.exit_code
        raise
    finally:
        executor.close()
        seconds, memory = round(time.perf_counter() - clock, 3), executor.memory
        output = directory.output
        run.send(make(
            "job_finished", job=plan.job_id, directory=str(directory.path), exit_code=code, seconds=seconds,
            memory=memory, output=str(output) if output else None,
        ))  # fmt: skip
        status = _STATUS.get(code, "failed")
        ended = replace(state, status=status, exit_code=code, finished=records.now(), seconds=seconds, memory=memory)
        try:
            directory.write_state(ended)
        except OSError as error:
            if not files.is_full(error):  # a full disk has raised already
                raise
    return code


def _finish(run: JobRun, entries: Mapping[str, StoreEntry], code: int, started: str) -> None:
    """Write output and provenance of a run that ended, and accept the job where every gate passed."""
    if code not in (0, GateFailed.exit_code):
        return
    plan, directory = run.plan, run.directory
    if code == 0 and not directory.has_environment():
        run.write_environment()
    made = [(step, entries[step.id]) for step in plan.steps if step.id in entries]
    checkpoints = [entry for step, entry in made if step.produces != METRICS_ONLY]
    if checkpoints:
        directory.set_output(checkpoints[-1])
    provenance.write(plan, directory, made, started, records.now())
    if code == 0:
        metrics = {id: entry.record.metrics for id, entry in entries.items()}
        accepted.accept_plan(directory.root, plan, metrics)


def _steps(plan: Plan, preview: Preview | None) -> list[dict[str, Any]]:
    """Return the steps as job_started lists them."""
    forecasts = {f.step.index: f for f in preview.forecasts} if preview else {}
    return [{"index": s.index, "id": s.id, "kind": s.kind, **_forecast(forecasts.get(s.index))} for s in plan.steps]


def _forecast(forecast: Forecast | None) -> dict[str, Any]:
    if forecast is None:
        return {"state": "run"}
    if forecast.state == "cached":
        return {"state": "cached"}
    cost = {"memory": forecast.cost.memory, "seconds": forecast.cost.seconds}
    return {"state": forecast.state, "forecast": cost}


@contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    """Open a file to append to; its close ignores the error of a full disk, which the write has raised already."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()
