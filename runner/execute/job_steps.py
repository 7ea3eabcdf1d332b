"""The steps of one job: which are ready, which are done, and the verdicts of their gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from runner.errors import GateFailed, StoreError
from runner.execute import missed_gates
from runner.execute.executor import Task
from runner.execute.job_session import JobSession, exit_code_of
from runner.execute.remote_results import RemoteResults
from runner.job import gates
from runner.job.entries import StoreEntry
from runner.plan import resources
from runner.plan.types import PlannedStep
from runner.progress.events import Event, make
from runner.recipe import references
from runner.steps import kinds


class JobSteps:
    """A job on its way through its plan. `entries` are its results so far, by step id, in the order of the plan.

    `code` is the exit code once the job has failed, was stopped, or has nothing more to run after a missed gate, else
    0; `error` the exception where one ended it.
    """

    def __init__(self, session: JobSession) -> None:
        self.session = session
        self.entries: dict[str, StoreEntry] = {}
        self.code = 0
        self.error: BaseException | None = None
        self.stopped_at: PlannedStep | None = None
        self.memory = 0
        self.computed = False
        self.timed_out = False
        self.is_closed = False
        self._running: set[str] = set()
        self._stopped: set[str] = set()  # steps that do not run for a missed gate
        self._missed = False
        self._waiting: dict[str, str] = {}
        self._elsewhere: set[str] = set()  # steps that another process computes, or has just made
        plan, preview = session.run.plan, session.preview
        forecasts = {f.step.index: f for f in preview.forecasts} if preview else {}
        self.demands = resources.demands(plan, forecasts)
        self._needs = {step.id: _needs(step, {s.id for s in plan.steps}) for step in plan.steps}

    @cached_property
    def _remote(self) -> RemoteResults:
        return RemoteResults(self.session.run)  # made when the job is open, so that its warnings are in its log

    @property
    def is_done(self) -> bool:
        """Whether every step has its result, but for those that a missed gate stopped."""
        return all(step.id in self.entries or step.id in self._stopped for step in self.session.run.plan.steps)

    @property
    def is_running(self) -> bool:
        return bool(self._running)

    @property
    def is_ended(self) -> bool:
        """Whether nothing of this job will start any more."""
        stopped = self.timed_out or self.stopped_at is not None
        return self.is_done or stopped or self.code != 0 or self.is_closed

    def ready(self) -> Iterator[PlannedStep]:
        """Yield the steps that can start: those whose inputs are there, in the order of the plan."""
        for step in self.session.run.plan.steps:
            if step.id in self.entries or step.id in self._running or step.id in self._stopped:
                continue
            if all(id in self.entries for id in self._needs[step.id]) and not self._is_computed_elsewhere(step):
                yield step

    def task(self, step: PlannedStep) -> Task:
        return Task(self.session.run, step, dict(self.entries), self.demands[step.id])

    def find(self, step: PlannedStep) -> StoreEntry | None:
        """Return the result of a step from the store, or pulled from the remote one."""
        run = self.session.run
        return run.store.entry(step.key, lambda text: run.warn(step, text)) or self._remote.pull(step)

    @property
    def waits_elsewhere(self) -> bool:
        """Whether a step waits for a process that shares the remote store."""
        return bool(self._elsewhere)

    def claim(self, step: PlannedStep) -> bool:
        """Claim a step in the remote store, if there is one; False where another process computes it or has made it."""
        holder = self._remote.claim(step)
        if holder is None:
            self._elsewhere.discard(step.id)
            return True
        self._elsewhere.add(step.id)
        if holder:
            self.wait_for(step, holder)
        return False

    def _is_computed_elsewhere(self, step: PlannedStep) -> bool:
        """Return whether another process computed a step when this one looked last, a short time ago."""
        holder = self._remote.computed_by(step)
        if holder is None:
            return False
        self._elsewhere.add(step.id)
        self.wait_for(step, holder)
        return True

    def release(self, step: PlannedStep) -> None:
        """Give back the claim on a step."""
        self._remote.release(step)

    def take_cached(self, step: PlannedStep, entry: StoreEntry) -> None:
        """Take the result of a step that need not be computed."""
        self._check_inputs(step, entry)
        metrics = dict(entry.record.metrics)
        self.session.run.send(
            make("step_cached", step=step.index, id=step.id, kind=step.kind, key=step.key, metrics=metrics)
        )
        self._take(step, entry)

    def wait_for(self, step: PlannedStep, holder: str) -> None:
        """Report once that another job of this apply, or another process, computes the same step."""
        if self._waiting.get(step.id) != holder:
            self._waiting[step.id] = holder
            self.session.run.send(make("waiting", step=step.index, holder=holder))

    def record_environment(self) -> None:
        """Write environment.json before the first step that is computed."""
        if not self.computed:
            self.computed = True
            self.session.run.write_environment()

    def started(self, step: PlannedStep) -> None:
        self._running.add(step.id)

    def receive(self, event: Event) -> None:
        """Send an event of a running step on."""
        self.memory = max(self.memory, event.get("memory") or 0)
        self.session.run.send(event)

    def finished(self, step: PlannedStep) -> None:
        """Take the result that an executor committed. StoreError where it left the store meanwhile."""
        self._running.discard(step.id)
        entry = self.find(step)
        if entry is None:
            raise StoreError(f"the result of `{step.id}` left the store", "apply again")
        self._take(step, entry)

    def failed(self, step: PlannedStep, code: int) -> None:
        self._running.discard(step.id)
        if code == GateFailed.exit_code:  # it ended early, at a limit that it was given
            self._miss(step, missed_gates.dependents_of_failed(self.session.run.plan.steps, step))
        else:
            self.code = self.code or code

    def interrupted(self, step: PlannedStep) -> None:
        self._running.discard(step.id)
        self.stopped_at = self.stopped_at or step

    def broken(self, error: BaseException, step: PlannedStep | None = None) -> None:
        """End the job for an exception."""
        if step is not None:
            self._running.discard(step.id)
        self.error = self.error or error
        self.code = self.code or exit_code_of(error)

    def _take(self, step: PlannedStep, entry: StoreEntry) -> None:
        self._elsewhere.discard(step.id)
        order = {planned.id: planned.index for planned in self.session.run.plan.steps}
        entries = {**self.entries, step.id: entry}
        self.entries = {id: entries[id] for id in sorted(entries, key=order.__getitem__)}
        self._remote.push(step, entry)
        self.session.run.directory.link_step(step, entry)
        missed = [rule for rule in self._missed_rules(step, entry) if rule.get("on_miss") != missed_gates.WARN]
        if missed:
            stops = [rule for rule in missed if rule.get("on_miss") != missed_gates.CONTINUE]
            self._miss(step, missed_gates.dependents(self.session.run.plan.steps, step, stops))
        elif self._missed and self.is_done:
            self.code = self.code or GateFailed.exit_code

    def _miss(self, step: PlannedStep, stopped: Sequence[str]) -> None:
        """Take note that a gate of a step was missed, and of the steps that do not run for it."""
        self._missed = True
        for id in stopped:
            if id not in self._stopped | {step.id}:
                index, text = self.session.run.plan.step(id).index, f"it does not run: `{step.id}` missed a gate"
                self.session.run.send(make("message", step=index, level="info", text=text))
        self._stopped.update(stopped)
        if self.is_done:
            self.code = self.code or GateFailed.exit_code

    def _check_inputs(self, step: PlannedStep, entry: StoreEntry) -> None:
        """Warn where a cached result was made from other bytes than its input has now."""
        for name, id in step.inputs.items():
            made_from = entry.record.inputs.get(name)
            if id in self.entries and made_from != self.entries[id].record.digest:
                text = f"it was made from a result of `{id}` with other bytes, digest {made_from}"
                self.session.run.warn(step, text)

    def _missed_rules(self, step: PlannedStep, entry: StoreEntry) -> list[Mapping[str, Any]]:
        """Judge every gate of a step, send all verdicts, and return the rules of those that were missed."""
        run = self.session.run
        earlier: dict[str, Mapping[str, float] | None] = {
            id: other.record.metrics for id, other in self.entries.items()
        }
        for text, metrics in run.references.items():
            earlier[text] = metrics.get(references.parse(text).step or step.id, {}) if metrics is not None else None
        verdicts = [
            gates.judge(metric, rule, entry.record.metrics, earlier, self._samples(step, metric, rule))
            for metric, rule in sorted(step.gates.items())
        ]
        for verdict in verdicts:
            run.send(make("gate", step=step.index, id=step.id, **asdict(verdict)))
        return [step.gates[verdict.metric] for verdict in verdicts if not verdict.passed]

    def _samples(self, step: PlannedStep, metric: str, rule: Mapping[str, Any]) -> gates.Samples | None:
        """Return the values of which a metric and its reference are made, for a gate with a confidence."""
        noise = kinds.noise(step.kind, metric) if "confidence" in rule else None
        if noise is None:
            return None
        reference = references.from_rule(rule)
        other = self.entries.get(reference.step or "") if reference is not None else None
        name = noise.samples or metric
        own, compared = ((found.record.details.get("samples") or {}).get(name) if found else None for found in (
            self.entries[step.id], other,
        ))  # fmt: skip
        return gates.Samples(noise, own, compared)


def _needs(step: PlannedStep, ids: set[str]) -> set[str]:
    """Return the steps that must be done before a step starts: its inputs, and those that its gates compare with."""
    return ({*step.inputs.values(), *missed_gates.compared(step)} & ids) - {step.id}
