"""One run of a job while its lock is held: what the scheduler and the executors share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job import accepted, environment
from runner.job.claims import Claims
from runner.job.directory import JobDirectory
from runner.job.store import Store
from runner.plan.types import Plan, PlannedStep
from runner.progress.events import Event, Sink, make


@dataclass(frozen=True)
class JobRun:
    """`references`: the metrics of other jobs that gates compare with, by reference; None where no job is accepted."""

    plan: Plan
    directory: JobDirectory
    store: Store
    settings: ApplySettings
    stopping: Stopping
    sinks: Sequence[Sink]
    references: Mapping[str, accepted.Metrics | None]
    claims: Claims | None = None  # on steps in the remote store

    def send(self, event: Event) -> None:
        for sink in self.sinks:
            sink.send(event)

    def inform(self, step: PlannedStep, text: str, level: str = "info") -> None:
        """Send a message about a step."""
        self.send(make("message", step=step.index, level=level, text=f"`{step.id}`: {text}"))

    def warn(self, step: PlannedStep, text: str) -> None:
        self.inform(step, text, "warning")

    def write_environment(self) -> None:
        """Write the facts of the machine and its packages into the job's folder."""
        self.directory.write_environment(self.plan, environment.facts(self.plan.device, self.settings.thread_count))
