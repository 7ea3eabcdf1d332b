"""How a plan is applied, apart from what the plan says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runner.job import environment
from runner.job.remote import Remote


@dataclass(frozen=True)
class ApplySettings:
    """None of these changes a byte of a result.

    `command` is what the user types to go on. `threads` is every core by default. With `wait` False, a plan that
    another process applies raises Interrupted, which says who. What is not in the store is looked for in `remote`, and
    what is made goes there; trouble with it is a warning. Gates find other jobs in `gates_root`, by default in the jobs
    folder.
    """

    command: str
    threads: int | None = None
    wait: bool = True
    remote: Remote | None = None
    gates_root: Path | None = None

    @property
    def thread_count(self) -> int:
        """How many threads to compute with."""
        return self.threads or environment.default_threads()
