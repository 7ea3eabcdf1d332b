"""The states of batch jobs as squeue lists them, which works without the accounting that sacct needs."""

from __future__ import annotations

import os
import subprocess
import threading
import time

_SECONDS = 5.0  # between calls, for all jobs together
_PATIENCE = 20.0  # seconds that a job must be ended or absent: it may not be listed yet, or just be queued again
_ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT",
})  # fmt: skip
GONE = "gone"


class SlurmQueue:
    """Slurm's queue of this user's batch jobs. Several threads may ask at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = 0.0
        self._states: dict[str, str] = {}
        self._absent: dict[str, float] = {}  # jobs that have ended or are not listed, since when

    def end_of(self, number: str) -> str | None:
        """Return the state in which a batch job ended, GONE where Slurm does not know it; None while it may go on.

        Where Slurm does not answer, jobs count as they were.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._asked >= _SECONDS:
                self._ask()
                self._asked = time.monotonic()
            state = self._states.get(number, GONE)
            if state not in _ENDED and state != GONE:
                self._absent.pop(number, None)
                return None
            since = self._absent.setdefault(number, now)
            return state if now - since >= _PATIENCE else None

    def _ask(self) -> None:
        command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i %T"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            self._absent.clear()  # nothing is known now
            return
        self._states = dict(line.split(maxsplit=1) for line in listed.splitlines() if " " in line)
