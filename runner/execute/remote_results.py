"""Pull results of steps from a remote store and push them to it. Failures are warnings and end no job."""

from __future__ import annotations

from runner.errors import StoreError
from runner.execute.job_run import JobRun
from runner.job.entries import StoreEntry
from runner.job.remote import Refused
from runner.plan.types import PlannedStep


class RemoteResults:
    """The remote store of one run, if its settings name one. After a failure it is not used again."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._remote = run.settings.remote
        self._refused: set[str] = set()  # keys whose entries in the remote store do not match their records

    def pull(self, step: PlannedStep) -> StoreEntry | None:
        """Fetch the result of a step, verified, into the store; None where the remote store has no valid one."""
        if self._remote is None:
            return None
        try:
            entry = self._remote.pull(step.key, self._run.store, wait=False)
        except StoreError as error:
            if isinstance(error, Refused):
                self._refused.add(step.key)
            self._give_up(step, error)
            return None
        if entry is not None:
            self._run.inform(step, f"pulled from {self._remote.url}")
        return entry

    def push(self, step: PlannedStep, entry: StoreEntry) -> None:
        """Upload a result; it replaces one that was refused."""
        if self._remote is None:
            return
        try:
            self._remote.push(entry, replace=step.key in self._refused)
        except StoreError as error:
            self._give_up(step, error)

    def _give_up(self, step: PlannedStep, error: StoreError) -> None:
        """Warn. A refused entry concerns one step; a store that fails is not used again."""
        self._run.warn(step, error.message)
        if not isinstance(error, Refused):
            self._remote = None
