"""Run a command and end it, with every process that it started: `python -m runner.system.supervisor`.

The parent writes {"command": [...], "environment": {...}} as a line of JSON to stdin, and holds it open. When it
closes, because the parent closed it or died by whatever signal, the command gets SIGTERM, and after some seconds
SIGKILL; so it does when this process gets a signal to end. On Linux this process adopts the descendants whose parents
ended, so that none escapes by a session of its own, and the command dies with it. It exits as the command did: its
status, or 128 + the signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from runner.system import process_tree
from runner.system.parent_death import die_with_parent

GRACE = 3.0  # seconds between SIGTERM and SIGKILL
_POLL = 0.05
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in _SIGNALS:
        signal.signal(number, stop)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    asked = _line()
    child = _start(asked["command"], asked["environment"])
    while (status := _reaped(child)) is None and not stopping:
        readable, _, _ = select.select([0], [], [], _POLL)
        stopping = stopping or bool(readable and not os.read(0, 4096))
    if status is None:
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while (status := _reaped(child)) is None and time.monotonic() < deadline:
            time.sleep(_POLL)
    _end_all(child)
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    sys.exit(code if code >= 0 else 128 - code)


def _line() -> dict[str, Any]:
    """Read the first line of stdin, and nothing after it."""
    found = b""
    while not found.endswith(b"\n"):
        more = os.read(0, 1)
        if not more:
            sys.exit(1)  # the parent ended
        found += more
    asked: dict[str, Any] = json.loads(found)
    return asked


def _start(command: list[str], environment: dict[str, str]) -> int:
    """Start the command in a process group of its own, with an empty stdin; return its pid."""
    parent = str(os.getpid())
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(parent)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _reaped(child: int) -> int | None:
    """Reap all processes that ended; return the status of the child once it did."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _end_all(child: int) -> None:
    """Kill the group of the child, and every descendant until there is none."""
    with suppress(ProcessLookupError, PermissionError):  # the latter on macOS, where only zombies are left
        os.killpg(child, signal.SIGKILL)
    while left := process_tree.descendants(os.getpid()):
        process_tree.kill(left)
        _reaped(child)
        time.sleep(_POLL)
    _reaped(child)


if __name__ == "__main__":
    main()
