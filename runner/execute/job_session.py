"""One job while it is applied: its lock, its log of events, and its state, from the first step to the last."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TextIO

from runner.contracts.step_kind import METRICS_ONLY
from runner.errors import GateFailed, Interrupted, MachineError, RunnerError, StoreError
from runner.execute.job_run import JobRun
from runner.job import accepted, files, provenance, records
from runner.job.directory import JobDirectory, JobState
from runner.job.entries import StoreEntry
from runner.plan.types import Forecast, Preview
from runner.progress.events import make
from runner.progress.jsonl import JsonLines

_STATUS = {0: "done", GateFailed.exit_code: "gate-missed", Interrupted.exit_code: "interrupted", 130: "interrupted"}


class JobSession:
    """Opened before a job's first step and closed after its last. `run` sends events to the job's own log meanwhile.

    `preview` gives the events their forecasts.
    """

    def __init__(self, run: JobRun, preview: Preview | None) -> None:
        self.run = run
        self.preview = preview
        self._lock = run.directory.lock(run.settings.command)
        self._waits_for = ""
        self._log: TextIO | None = None
        self._state: JobState | None = None
        self.was_opened = False
        self._clock = 0.0

    @property
    def is_open(self) -> bool:
        return self._state is not None

    @property
    def is_waiting(self) -> bool:
        """Whether another process applies the plan."""
        return not self.is_open and bool(self._waits_for)

    def try_open(self) -> bool:
        """Take the job's lock and begin; return False while another process holds it, which an event names.

        Raises Interrupted where it is held and the settings say not to wait, OSError where the folder cannot be
        written.
        """
        run = self.run
        JobDirectory.create(run.directory.root, run.plan)
        if not self._lock.acquire(wait=False):
            self._wait()
            return False
        try:
            run.directory.refresh(run.plan)
            self._log = open(run.directory.events, "a", encoding="utf-8")  # noqa: SIM115  closed by `close`
            self.run = run = replace(run, sinks=[*run.sinks, JsonLines(self._log)])
            self._clock = time.perf_counter()
            state = JobState("running", None, records.now(), None, None, None, run.settings.command, os.getpid())
            run.directory.write_state(state)
        except BaseException:
            self._release()
            raise
        self._state = state
        self.was_opened = True
        plan, path = run.plan, str(run.directory.path)
        run.send(make("job_started", job=plan.job_id, name=plan.recipe.name, directory=path, steps=self._steps()))
        return True

    def _wait(self) -> None:
        run, holder = self.run, self.run.directory.holder()
        if not run.settings.wait:
            message = f"another apply of this plan is running: {holder}"
            raise Interrupted(message, f"when it has ended: {run.settings.command}")
        if holder is not None and str(holder) != self._waits_for:
            self._waits_for = str(holder)
            run.send(make("waiting", step=None, holder=self._waits_for))

    def finish(self, entries: Mapping[str, StoreEntry], code: int) -> None:
        """Write output and provenance of a job that ended, and accept it where every gate passed."""
        if self._state is None or code not in (0, GateFailed.exit_code):
            return
        run = self.run
        plan, directory = run.plan, run.directory
        if code == 0 and not directory.has_environment():
            run.write_environment()
        made = [(step, entries[step.id]) for step in plan.steps if step.id in entries]
        assigned = {step.id: own for step, entry in made if (own := entry.record.details.get("assignment"))}
        if assigned:
            directory.write_lock(plan, assigned)
        checkpoints = [entry for step, entry in made if step.produces != METRICS_ONLY]
        if checkpoints:
            directory.set_output(checkpoints[-1])
        provenance.write(plan, directory, made, self._state.started, records.now())
        if code == 0:
            accepted.accept_plan(directory.root, plan, {id: entry.record.metrics for id, entry in entries.items()})

    def close(self, code: int, memory: int) -> None:
        """Send job_finished, write job.json and release the lock; do nothing where the job is not open.

        `memory` is the peak of its steps in bytes.
        """
        if self._state is None:
            return
        run, state, self._state = self.run, self._state, None
        directory = run.directory
        try:
            seconds, output = round(time.perf_counter() - self._clock, 3), directory.output
            run.send(make(
                "job_finished", job=run.plan.job_id, directory=str(directory.path), exit_code=code, seconds=seconds,
                memory=memory, output=str(output) if output else None,
            ))  # fmt: skip
            status = _STATUS.get(code, "failed")
            ended = replace(
                state, status=status, exit_code=code, finished=records.now(), seconds=seconds, memory=memory
            )
            try:
                directory.write_state(ended)
            except OSError as error:
                if not files.is_full(error):  # a full disk has raised already
                    raise
        finally:
            self._release()

    def _release(self) -> None:
        if self._log is not None:
            with suppress(OSError):  # of a full disk, which the write has raised already
                self._log.close()
        self._lock.release()

    def _steps(self) -> list[dict[str, Any]]:
        """Return the steps as job_started lists them."""
        found = {f.step.index: f for f in self.preview.forecasts} if self.preview else {}
        steps = self.run.plan.steps
        return [{"index": s.index, "id": s.id, "kind": s.kind, **_forecast(found.get(s.index))} for s in steps]


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of an error that ends a job."""
    if isinstance(error, RunnerError):
        return error.exit_code
    if isinstance(error, OSError):
        return MachineError.exit_code if files.is_full(error) else StoreError.exit_code
    return 1


def _forecast(forecast: Forecast | None) -> dict[str, Any]:
    if forecast is None:
        return {"state": "run"}
    if forecast.state == "cached":
        return {"state": "cached"}
    cost = {"memory": forecast.cost.memory, "seconds": forecast.cost.seconds}
    return {"state": forecast.state, "forecast": cost}
