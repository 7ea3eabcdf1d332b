"""The executors by name."""

from __future__ import annotations

from runner.execute.executor import Executor, Reports
from runner.execute.local import LocalExecutor
from runner.execute.settings import ApplySettings


def make(settings: ApplySettings, reports: Reports) -> Executor:
    """Return the executor that the settings name; its events go to `reports`."""
    return LocalExecutor(reports, settings.jobs_at_once)
