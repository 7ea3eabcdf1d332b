"""Claims on steps in a remote store: of several processes that apply at once, one computes a step that they share.

    <url>/claims/<key>/<name>     a process that computes the step, and a count that rises while it lives

Stores have no locks, and not all can refuse to overwrite a file. So a process writes a claim under a name of its own
and then lists the folder: it has the step if its claim is the only one. Of two that claim at once, the later one sees
the other's, since listings show what was written; if both see both, they withdraw and try again after random pauses.
A process that is killed leaves its claim, which counts as abandoned once its process is gone (on the same machine) or
its count has not risen for a minute. Claims save work and protect nothing: results are committed the same without them.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from runner.errors import StoreError
from runner.job.locks import Holder
from runner.job.remote import Remote

_BEAT = 15.0  # seconds between rises of the count
_LIFE = 60.0  # seconds without one after which a claim is abandoned
_PAUSE = 0.2  # seconds, at most twice as many, after which two that claimed at once try again
_TRIES = 5
# Seconds between looks at a step that another process computes, a tenth of the wait so far.
_SOONEST, _LATEST = 1.0, 10.0


@dataclass(frozen=True)
class _Other:
    """Another process that computes a step, seen first at `since`; both times are monotonic."""

    holder: Holder
    since: float
    look_again: float


class Claims:
    """The claims of this process in one remote store. `command` describes it to others."""

    def __init__(self, remote: Remote, command: str) -> None:
        self._remote = remote
        self._command = command
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self._held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float]] = {}  # claims of others, and when they last changed
        self._others: dict[str, _Other] = {}  # processes that compute steps, by key
        self._lock = threading.Lock()  # one of `_held` and of writing claims
        self._beats = 0
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, key: str) -> Holder | None:
        """Claim a step; return the process that computes it already, None where it is this one's now.

        Raises StoreError where the store cannot be reached.
        """
        other = self._take(key)
        if other is None:
            self._others.pop(key, None)
        else:
            now = time.monotonic()
            since = self._others[key].since if key in self._others else now
            self._others[key] = _Other(other, since, now + min(_LATEST, max(_SOONEST, (now - since) / 10)))
        return other

    def seen(self, key: str) -> Holder | None:
        """Return the process that was found to compute a step; None where it is time to look again.

        One look serves all jobs of an apply that wait for the same step.
        """
        other = self._others.get(key)
        return other.holder if other is not None and time.monotonic() < other.look_again else None

    def _take(self, key: str) -> Holder | None:
        for attempt in range(_TRIES):
            if other := self._other(key):
                return other
            with self._lock:
                self._write(key)
                self._held.add(key)
            if (other := self._other(key)) is None:
                self._beat_from_now_on()
                return None
            self.release(key)
            if attempt < _TRIES - 1:
                time.sleep(random.uniform(_PAUSE, 2 * _PAUSE))
        return other

    def release(self, key: str) -> None:
        """Give a step back, if this process has claimed it."""
        with self._lock:
            if key in self._held:
                self._held.discard(key)
                self._remote.remove(f"claims/{key}/{self._name}")

    def close(self) -> None:
        """Give back all that is claimed, as far as the store can be reached."""
        self._closed.set()
        for key in list(self._held):
            with suppress(StoreError):
                self.release(key)

    def _other(self, key: str) -> Holder | None:
        """Return another process with a claim on a step; abandoned claims are removed."""
        for name in self._remote.names(f"claims/{key}"):
            path = f"claims/{key}/{name}"
            if name == self._name or (content := self._remote.content(path)) is None:
                continue
            before, since = self._seen.get(path, (b"", 0.0))
            if content != before:
                since = time.monotonic()
                self._seen[path] = (content, since)
            holder, is_gone = _parsed(content)
            if not is_gone and time.monotonic() - since < _LIFE:
                return holder
            self._remote.remove(path)
        return None

    def _write(self, key: str) -> None:
        claim = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "command": self._command,
                 "started": self._started, "beat": self._beats}  # fmt: skip
        self._remote.write(f"claims/{key}/{self._name}", json.dumps(claim).encode())

    def _beat_from_now_on(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        """Raise the count of all claims again and again. A store that cannot be reached now may be at the next beat."""
        while not self._closed.wait(_BEAT):
            self._beats += 1
            with self._lock:
                for key in sorted(self._held):
                    with suppress(StoreError):
                        self._write(key)


def _parsed(content: bytes) -> tuple[Holder, bool]:
    """Return the process of a claim, and whether it ran on this machine and is gone."""
    try:
        found = json.loads(content)
        holder = Holder(int(found["pid"]), str(found["host"]), str(found["started"]), str(found["command"]))
        return holder, found["machine"] == _machine() and not _lives(holder.pid)
    except (ValueError, KeyError, TypeError):
        return Holder(0, "", "", ""), False  # torn: it counts until it is old


def _machine() -> str:
    """Return what names this machine since it was started, and the processes that this one can see there."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)  # not known: no process counts as gone before its claim is old


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    return True
