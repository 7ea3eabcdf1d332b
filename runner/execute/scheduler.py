"""Walk the steps of a plan: take each result from the store, or have an executor compute it, then judge its gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from runner.errors import GateFailed, Interrupted, StoreError
from runner.execute.executor import Executor
from runner.execute.job_run import JobRun
from runner.execute.remote_results import RemoteResults
from runner.job import gates
from runner.job.entries import StoreEntry
from runner.plan.types import PlannedStep
from runner.progress.events import make
from runner.recipe.references import parse


class Scheduler:
    """Runs the steps of a plan in order. `entries` are the results so far, by step id."""

    def __init__(self, run: JobRun, executor: Executor) -> None:
        self.entries: dict[str, StoreEntry] = {}
        self._run, self._executor = run, executor
        self._remote = RemoteResults(run)

    def work(self) -> int:
        """Run every step and return the exit code. StoreError where a result leaves the store meanwhile."""
        run = self._run
        for step in run.plan.steps:
            if run.stopping.asked:
                return self._interrupted(None)
            entry = self._stored(step) or self._remote.pull(step)
            if entry is not None:
                self._check_inputs(step, entry)
                run.send(make(
                    "step_cached", step=step.index, id=step.id, kind=step.kind, key=step.key,
                    metrics=dict(entry.record.metrics),
                ))  # fmt: skip
            else:
                if code := self._executor.compute(step, self.entries):
                    return self._interrupted(step) if code == Interrupted.exit_code else code
                entry = self._stored(step)
                if entry is None:
                    raise StoreError(f"the result of `{step.id}` left the store", "apply again")
            self.entries[step.id] = entry
            self._remote.push(step, entry)
            run.directory.link_step(step, entry)
            if not self._pass_gates(step, entry):
                return GateFailed.exit_code
        return 0

    def _stored(self, step: PlannedStep) -> StoreEntry | None:
        return self._run.store.entry(step.key, lambda text: self._run.warn(step, text))

    def _check_inputs(self, step: PlannedStep, entry: StoreEntry) -> None:
        """Warn where a cached result was made from other bytes than its input has now."""
        for name, id in step.inputs.items():
            made_from = entry.record.inputs.get(name)
            if id in self.entries and made_from != self.entries[id].record.digest:
                self._run.warn(step, f"it was made from a result of `{id}` with other bytes, digest {made_from}")

    def _pass_gates(self, step: PlannedStep, entry: StoreEntry) -> bool:
        """Judge every gate of a step, send all verdicts, and return whether all passed."""
        earlier: dict[str, Mapping[str, float] | None] = {
            id: other.record.metrics for id, other in self.entries.items()
        }
        for text, metrics in self._run.references.items():
            earlier[text] = metrics.get(parse(text).step or step.id, {}) if metrics is not None else None
        verdicts = [gates.judge(m, rule, entry.record.metrics, earlier) for m, rule in sorted(step.gates.items())]
        for verdict in verdicts:
            self._run.send(make("gate", step=step.index, id=step.id, **asdict(verdict)))
        return all(verdict.passed for verdict in verdicts)

    def _interrupted(self, step: PlannedStep | None) -> int:
        run, index = self._run, step.index if step else None
        if run.stopping.timed_out:
            text = "the time limit is over: stopped at a safe point"
            run.send(make("message", step=index, level="warning", text=text))
        run.send(make("interrupted", step=index, resume=run.settings.command))
        return run.stopping.exit_code
