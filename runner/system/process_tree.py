"""The processes that descend from one, as Linux lists them in /proc; elsewhere there are none to be seen."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def descendants(root: int) -> dict[int, int]:
    """Return the processes below `root`, without it: pid → time of its start, which tells it from a later namesake."""
    parents: dict[int, int] = {}
    starts: dict[int, int] = {}
    for entry in _PROC.glob("[0-9]*"):
        pid = int(entry.name)
        if (facts := _stat(pid)) is not None:
            parents[pid], starts[pid] = facts
    found: dict[int, int] = {}
    todo = [root]
    while todo:
        above = todo.pop()
        below = [pid for pid, parent in parents.items() if parent == above and pid not in found]
        found |= {pid: starts[pid] for pid in below}
        todo += below
    return found


def runs(pid: int, start: int) -> bool:
    """Return whether the process that started at `start` still runs."""
    facts = _stat(pid)
    return facts is not None and facts[1] == start


def kill(processes: dict[int, int]) -> None:
    """Kill those of `processes`, pid → time of its start, that still run."""
    for pid, start in processes.items():
        if runs(pid, start):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def memory(processes: dict[int, int]) -> int:
    """Return the resident bytes of processes, each shared page counted once (Linux' proportional set size)."""
    return sum(_memory(pid) for pid in processes)


def _memory(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except OSError:  # it ended
        return 0


def _stat(pid: int) -> tuple[int, int] | None:
    """Return (parent, time of its start in clock ticks) of a process; None of one that ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and parentheses
    return (int(fields[1]), int(fields[19])) if fields[0] not in "ZX" else None
