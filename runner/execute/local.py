"""Apply a plan on this machine: what is in the store is taken from there, the rest runs in a worker process.

The parent keeps no state that matters: kill it at any moment, apply again, and it goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from runner.contracts.step_kind import METRICS_ONLY
from runner.errors import GateFailed, Interrupted, MachineError, RunnerError, StoreError
from runner.execute import failures
from runner.execute.process import WorkerDied, WorkerProcess
from runner.execute.requests import request
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job import accepted, environment, files, gates, provenance, records
from runner.job.directory import JobDirectory, JobState
from runner.job.entries import Stage, StoreEntry
from runner.job.remote import Refused, Remote
from runner.job.store import Store
from runner.plan.types import Forecast, Plan, PlannedStep, Preview
from runner.progress.events import Event, Sink, make
from runner.progress.jsonl import JsonLines
from runner.recipe.references import parse

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
    """Apply a plan; the exit code. Every event goes to `sinks`, which the caller closes.

    `stopping` may bring a time limit, and has afterwards who asked to stop.

    Raises, before anything is computed, StoreError or MachineError when the jobs folder cannot be written, and
    UsageError for a gate that refers to a job that is not there.
    """
    jobs_root = jobs_root.absolute()
    references = accepted.gate_references(settings.gates_root or jobs_root, plan)
    store = Store(jobs_root / "store")
    store.prepare()
    stopping, command = stopping or Stopping(), settings.command
    with stopping.installed():
        try:
            directory = JobDirectory.create(jobs_root, plan)
            lock = directory.lock(command)
            taken = lock.acquire(
                wait=settings.wait,
                stop=stopping.is_asked,
                say=lambda holder: _send(sinks, make("waiting", step=None, holder=str(holder))),
            )
            if not taken:
                if not stopping.asked:
                    raise Interrupted(
                        f"another apply of this plan is running: {directory.holder()}", f"when it has ended: {command}"
                    )
                _send(sinks, make("interrupted", step=None, resume=command))
                return stopping.exit_code
            try:
                directory.refresh(plan)
                with _appending(directory.events) as log:
                    job = _Job(
                        plan, preview, store, directory, [*sinks, JsonLines(log)], stopping, command, references,
                        settings.remote,
                    )  # fmt: skip
                    return job.run(plan.device, settings.threads or environment.default_threads())
            finally:
                lock.release()
        except OSError as error:
            if files.is_full(error):
                raise files.full_disk(jobs_root) from error
            raise


class _Job:
    """One application of a plan, while its lock is held."""

    def __init__(
        self, plan: Plan, preview: Preview | None, store: Store, directory: JobDirectory, sinks: Sequence[Sink],
        stopping: Stopping, command: str, references: Mapping[str, accepted.Metrics | None],
        remote: Remote | None,
    ) -> None:  # fmt: skip
        self.plan, self.preview, self.store, self.directory = plan, preview, store, directory
        self.sinks, self.stopping, self.command = sinks, stopping, command
        self.references, self.remote = references, remote
        self.refused: set[str] = set()  # keys whose entries in the remote store are not what they say
        self.entries: dict[str, StoreEntry] = {}
        self.worker: WorkerProcess | None = None
        self.memory = 0

    def run(self, device: str, threads: int) -> int:
        started, clock = records.now(), time.perf_counter()
        state = JobState("running", None, started, None, None, None, self.command, os.getpid())
        self.directory.write_state(state)
        forecasts = {f.step.index: f for f in self.preview.forecasts} if self.preview else {}
        steps = [
            {"index": s.index, "id": s.id, "kind": s.kind, **_forecast(forecasts.get(s.index))} for s in self.plan.steps
        ]
        self.send(make(
            "job_started", job=self.plan.job_id, name=self.plan.recipe.name, directory=str(self.directory.path),
            steps=steps,
        ))  # fmt: skip
        code = 1
        try:
            code = self.steps(device, threads)
            if code in (0, GateFailed.exit_code):
                self.set_output()
            if code in (0, GateFailed.exit_code):
                made = [(step, self.entries[step.id]) for step in self.plan.steps if step.id in self.entries]
                provenance.write(self.plan, self.directory, made, started, records.now())
            if code == 0:
                metrics = {id: entry.record.metrics for id, entry in self.entries.items()}
                accepted.accept_plan(self.directory.root, self.plan, metrics)
        except RunnerError as error:
            code = error.exit_code
            raise
        except OSError as error:
            code = MachineError.exit_code if files.is_full(error) else StoreError.exit_code
            raise
        finally:
            if self.worker is not None:
                self.worker.close()
            seconds = round(time.perf_counter() - clock, 3)
            output = self.directory.output
            self.send(make(
                "job_finished", job=self.plan.job_id, directory=str(self.directory.path), exit_code=code,
                seconds=seconds, memory=self.memory, output=str(output) if output else None,
            ))  # fmt: skip
            ended = replace(
                state, status=_STATUS.get(code, "failed"), exit_code=code, finished=records.now(), seconds=seconds,
                memory=self.memory,
            )  # fmt: skip
            try:
                self.directory.write_state(ended)
            except OSError as error:
                if not files.is_full(error):  # that was said already, by what filled the disk
                    raise
        return code

    def steps(self, device: str, threads: int) -> int:
        """Go through the plan; the exit code."""
        for step in self.plan.steps:
            if self.stopping.asked:
                return self.interrupted(None)
            entry = self.store.entry(step.key, lambda text, step=step: self.warn(step, text))  # type: ignore[misc]
            entry = entry or self.pulled(step)
            if entry is not None:
                self.check_inputs(step, entry)
                self.send(make(
                    "step_cached", step=step.index, id=step.id, kind=step.kind, key=step.key,
                    metrics=dict(entry.record.metrics),
                ))  # fmt: skip
            else:
                code = self.compute(step, device, threads)
                if code:
                    return code
                entry = self.store.entry(step.key, lambda text, step=step: self.warn(step, text))  # type: ignore[misc]
                if entry is None:
                    raise StoreError(f"the result of `{step.id}` left the store", "apply again")
            self.entries[step.id] = entry
            self.push(step, entry)
            self.directory.link_step(step, entry)
            if not self.pass_gates(step, entry):
                return GateFailed.exit_code
        if not self.directory.has_environment():
            self.directory.write_environment(self.plan, environment.facts(device, threads))
        return 0

    def compute(self, step: PlannedStep, device: str, threads: int) -> int:
        """Run a step in the worker; its exit code."""
        asked = request(
            self.plan, step, self.entries, store=self.store.root, device=device, threads=threads, command=self.command
        )
        if self.worker is None:
            self.worker = WorkerProcess(self.directory.worker_log, threads)
            self.stopping.on_ask, self.stopping.on_force = self.worker.stop, self.worker.kill
            self.directory.write_environment(self.plan, environment.facts(device, threads))  # while it starts
        if self.stopping.forced:
            self.worker.kill()
        elif self.stopping.asked:  # before there was somebody to tell
            self.worker.stop()
        log = self.directory.worker_log
        try:
            for event in self.worker.run(asked):
                self.memory = max(self.memory, event.get("memory") or 0)
                if event["event"] == "interrupted":
                    return self.interrupted(step)
                if event["event"] == "step_started":
                    log = Stage.of(self.store.root, step.key).log
                self.send(event)
                if event["event"] == "step_failed":
                    return int(event["exit_code"])
        except WorkerDied as died:
            if self.stopping.forced:
                return self.interrupted(step)
            failure = failures.of_death(died.returncode, log)
            self.send(make(
                "step_failed", step=step.index, id=step.id, kind=step.kind, **asdict(failure), log=str(log),
            ))  # fmt: skip
            return failure.exit_code
        return 0

    def interrupted(self, step: PlannedStep | None) -> int:
        if self.stopping.timed_out:
            text = "the time limit is over: stopped at a safe point"
            self.send(make("message", step=step.index if step else None, level="warning", text=text))
        self.send(make("interrupted", step=step.index if step else None, resume=self.command))
        return self.stopping.exit_code

    def pulled(self, step: PlannedStep) -> StoreEntry | None:
        """The result of a step from the remote store, if it has it and can be believed."""
        if self.remote is None:
            return None
        try:
            entry = self.remote.pull(step.key, self.store, wait=False)
        except StoreError as error:
            if isinstance(error, Refused):
                self.refused.add(step.key)
            self.gave_up(step, error)
            return None
        if entry is not None:
            text = f"`{step.id}`: pulled from {self.remote.url}"
            self.send(make("message", step=step.index, level="info", text=text))
        return entry

    def push(self, step: PlannedStep, entry: StoreEntry) -> None:
        if self.remote is None:
            return
        try:
            self.remote.push(entry, replace=step.key in self.refused)
        except StoreError as error:
            self.gave_up(step, error)

    def gave_up(self, step: PlannedStep, error: StoreError) -> None:
        """A refused entry concerns one step; a remote store that fails is not asked again."""
        self.warn(step, error.message)
        if not isinstance(error, Refused):
            self.remote = None

    def check_inputs(self, step: PlannedStep, entry: StoreEntry) -> None:
        """Say so when a cached result was made from other bytes than its input has now."""
        for name, id in step.inputs.items():
            made_from = entry.record.inputs.get(name)
            if id in self.entries and made_from != self.entries[id].record.digest:
                self.warn(step, f"it was made from a result of `{id}` with other bytes, digest {made_from}")

    def pass_gates(self, step: PlannedStep, entry: StoreEntry) -> bool:
        """Judge every gate of a step, and say all verdicts."""
        earlier: dict[str, Mapping[str, float] | None] = {
            id: other.record.metrics for id, other in self.entries.items()
        }
        for text, metrics in self.references.items():
            earlier[text] = metrics.get(parse(text).step or step.id, {}) if metrics is not None else None
        verdicts = [gates.judge(m, rule, entry.record.metrics, earlier) for m, rule in sorted(step.gates.items())]
        for verdict in verdicts:
            self.send(make("gate", step=step.index, id=step.id, **asdict(verdict)))
        return all(verdict.passed for verdict in verdicts)

    def set_output(self) -> None:
        """output/ is the last checkpoint there is; a plan that makes none has no output."""
        made = [e for s in self.plan.steps if s.produces != METRICS_ONLY and (e := self.entries.get(s.id))]
        if made:
            self.directory.set_output(made[-1])

    def warn(self, step: PlannedStep, text: str) -> None:
        self.send(make("message", step=step.index, level="warning", text=f"`{step.id}`: {text}"))

    def send(self, event: Event) -> None:
        _send(self.sinks, event)


def _forecast(forecast: Forecast | None) -> dict[str, Any]:
    """What job_started says of a step that the preview told of."""
    if forecast is None:
        return {"state": "run"}
    if forecast.state == "cached":
        return {"state": "cached"}
    cost = {"memory": forecast.cost.memory, "seconds": forecast.cost.seconds}
    return {"state": forecast.state, "forecast": cost}


@contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    """A file to append to, whose close never fails: on a full disk it would, for a line that was given up already."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _send(sinks: Sequence[Sink], event: Event) -> None:
    for sink in sinks:
        sink.send(event)
