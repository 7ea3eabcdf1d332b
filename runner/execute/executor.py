"""The protocol of executors, which run steps for the scheduler: in one worker process, or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from runner.job.entries import StoreEntry
from runner.plan.types import PlannedStep


class Executor(Protocol):
    """Computes steps whose inputs are in the store, and commits their results there. It never decides what runs."""

    @property
    def memory(self) -> int:
        """Peak resident bytes of its processes so far."""
        ...

    def compute(self, step: PlannedStep, entries: Mapping[str, StoreEntry]) -> int:
        """Compute a step from the results of the steps before it, by id, and send its events.

        Returns 0 where its result is in the store, Interrupted.exit_code where it stopped at a safe point or was
        killed on request, else the exit code of the failure, whose `step_failed` event was sent. Raises MachineError
        for an input that is not on this machine.
        """
        ...

    def close(self) -> None:
        """End its processes. May be called at any time, also twice."""
        ...
