"""Claim steps in a remote store, pull their results and push them. Failures are warnings and end no job."""

from __future__ import annotations

from contextlib import suppress

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
        self._claims = run.claims
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

    def claim(self, step: PlannedStep) -> str | None:
        """Claim a step that is to be computed; return who computes it already, "" where its result is there now.

        None where it is claimed, and where claims cannot be written: what cannot be written is noticed by `push`.
        """
        if self._remote is None or self._claims is None:
            return None
        try:
            holder = self._claims.take(step.key)
            if holder is None and step.key not in self._refused and self._remote.has(step.key):
                self.release(step)
                return ""
        except StoreError:
            self._claims = None
            return None
        return None if holder is None else str(holder)

    def computed_by(self, step: PlannedStep) -> str | None:
        """Return the process that computes a step, as far as this one looked a short time ago."""
        holder = None if self._claims is None else self._claims.seen(step.key)
        return None if holder is None else str(holder)

    def release(self, step: PlannedStep) -> None:
        """Give back the claim on a step, if there is one."""
        if self._claims is not None:
            with suppress(StoreError):  # it is abandoned in a minute
                self._claims.release(step.key)

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
