"""Settings of an apply that are not part of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runner.job import environment
from runner.job.remote import Remote


@dataclass(frozen=True)
class ApplySettings:
    """Settings of an apply; none of them changes a byte of a result.

    `command` resumes the job. `threads` is every core by default. With `wait` False, a plan that another process
    applies raises Interrupted, which names that process. Results that are not in the store are pulled from `remote`,
    new ones are pushed there; its failures are warnings. Gates look for other jobs in `gates_root`, by default the jobs
    folder. Up to `jobs_at_once` steps run at the same time on this machine.
    """

    command: str
    threads: int | None = None
    wait: bool = True
    remote: Remote | None = None
    gates_root: Path | None = None
    jobs_at_once: int = 1

    @property
    def thread_count(self) -> int:
        """The number of threads to compute with."""
        return self.threads or environment.default_threads()
