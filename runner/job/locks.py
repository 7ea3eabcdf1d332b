"""Locks between processes, which the kernel releases when their holder dies, and which name their holder.

flock on Linux, macOS and BSD. Linux sends flock over NFS to the server (as byte-range locks, with lockd), so two
machines that share a jobs folder exclude each other; a mount without it (`nolock`, Lustre without `-o flock`) is
refused with a remedy. On Windows the lock is a byte range far beyond the text.

A lock file is never deleted while it may be waited for; a waiter that finds its file replaced opens the new one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from runner.errors import StoreError

_FIRST_POLL, _LAST_POLL = 0.02, 0.5  # seconds between attempts
_PROBES = 20  # attempts without waiting while the holder is unknown: `holder` locks for a moment too


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. `pid` is 0 where it is not known."""

    pid: int
    host: str
    started: str
    command: str

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        what = f" ({self.command})" if self.command else ""
        return f"process {self.pid}{where}{what}, since {self.started}"


UNKNOWN = Holder(0, "", "", "")


class Lock:
    """An exclusive lock on `path`. `command` describes its holder to other processes."""

    def __init__(self, path: Path, command: str = "") -> None:
        self.path = path
        self.command = command
        self._fd: int | None = None

    def acquire(
        self,
        *,
        wait: bool = True,
        on_wait: Callable[[Holder], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Take the lock; return False if it is held and `wait` is False, or once `stop()` is true.

        `on_wait` is called with each new holder that is waited for.
        """
        reported: Holder | None = None
        pause, probes = _FIRST_POLL, 0
        while True:
            fd = _try(self.path)
            if fd is not None:
                self._fd = fd
                _write(fd, Holder(os.getpid(), socket.gethostname(), _now(), self.command))
                return True
            by = _read(self.path)
            probes += 1
            if stop() or (not wait and (by.pid or probes >= _PROBES)):
                return False
            if on_wait is not None and by.pid and by != reported:
                on_wait(by)
                reported = by
            time.sleep(pause)
            pause = min(_LAST_POLL, pause * 1.5)

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def holder(path: Path) -> Holder | None:
    """Return the process that holds the lock now, or None. Never waits, creates no file."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        if _flock(fd):
            return None
        return _read(path)
    finally:
        os.close(fd)


def _try(path: Path) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _flock(fd):
            try:
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    taken, fd = fd, -1
                    return taken
            except FileNotFoundError:
                pass  # the folder was removed meanwhile: the next attempt makes it again
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def _write(fd: int, by: Holder) -> None:
    text = json.dumps({"pid": by.pid, "host": by.host, "started": by.started, "command": by.command})
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, text.encode())


def _read(path: Path) -> Holder:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Holder(int(found["pid"]), str(found["host"]), str(found["started"]), str(found["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        return UNKNOWN


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if sys.platform == "win32":
    import msvcrt

    def _flock(fd: int) -> bool:
        os.lseek(fd, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _flock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StoreError(
                f"the file system of the jobs folder has no locks ({error.strerror})",
                "choose a jobs folder on a local disk, or mount the file system with locks",
            ) from error
        return True
