"""The parent's end of the worker: start it, ask it to run a step, hear its events, stop or kill it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from runner.execute import messages
from runner.execute.messages import Request
from runner.progress.events import Event
from runner.system.cpu import WAITING

# glibc gives larger blocks pages of their own, which go back to the system when freed. Left alone it raises this limit
# to 32 MiB, and the heap of a worker that streams many layers grows in fragments. Told this limit, it would give back
# the end of the heap after every 128 KiB freed, and ask for the same pages again: a fifth of all page faults. What is
# kept instead goes back between layers and steps (runner.system.heap).
_OWN_PAGES = str(8 << 20)
_KEPT_AT_THE_END = str(64 << 20)


class WorkerDied(Exception):
    """The worker ended before its step did. `returncode` as of subprocess: negative for a signal."""

    def __init__(self, returncode: int) -> None:
        super().__init__(f"worker ended with {returncode}")
        self.returncode = returncode


class WorkerProcess:
    """A worker in a session of its own, so that a ^C on the terminal reaches the parent alone.

    `log` takes what it says outside of steps. `stop` and `kill` may be called from a signal handler.
    """

    def __init__(self, log: Path, threads: int) -> None:
        environment = {
            "MALLOC_MMAP_THRESHOLD_": _OWN_PAGES,
            "MALLOC_TRIM_THRESHOLD_": _KEPT_AT_THE_END,
            **({} if "OMP_WAIT_POLICY" in os.environ else WAITING),
            **os.environ,
            messages.EVENTS_FD: "1",
            messages.PARENT: str(os.getpid()),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        with open(log, "wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runner.execute.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._to = cast(IO[bytes], self._process.stdin)
        self._from = cast(IO[bytes], self._process.stdout)
        self._sending = False
        self._stopping = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, request: Request) -> Iterator[Event]:
        """The events of one step, its last one included. WorkerDied if that never comes."""
        self._sending = True
        try:
            self._write(messages.encode_run(request))
        finally:
            self._sending = False
        if self._stopping:
            self._write(messages.encode_stop())
        for line in self._from:
            try:
                event: Event = json.loads(line)
            except ValueError:
                break  # torn: the worker died while it wrote
            yield event
            if event["event"] in messages.LAST:
                return
        raise WorkerDied(self._process.wait())

    def stop(self) -> None:
        """Ask it to stop at the next safe point."""
        self._stopping = True
        if not self._sending:  # else the handler would cut the request in two; `run` says it afterwards
            self._write(messages.encode_stop())

    def kill(self) -> None:
        """End it at once, with whatever it started."""
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, 9)
            else:
                self._process.kill()

    def close(self) -> None:
        """Let it go: it exits when its stdin ends."""
        self._to.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._from.close()

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._to.fileno(), data) :]
        except BrokenPipeError:
            pass  # it died; reading its events will tell
