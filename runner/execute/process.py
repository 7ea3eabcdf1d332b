"""The parent's side of the worker: start it, send requests, read its events, stop or kill it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from runner.execute import messages
from runner.execute.messages import Request
from runner.progress.events import Event
from runner.system import heap
from runner.system.cpu import WAITING

# By default glibc raises the threshold of blocks that it maps separately to 32 MiB, and the heap of a worker that
# streams many layers grows in fragments. With the threshold set, it would trim the top of the heap after every 128 KiB
# freed, and fault the same pages in again: a fifth of all page faults. A larger M_TRIM_THRESHOLD avoids that; the heap
# is trimmed between layers and steps instead (runner.system.heap).
_TRIM_THRESHOLD = str(64 << 20)
# oneDNN, and torch's layer on it, each remember 1024 compiled products of bfloat16, by their shapes: half a megabyte
# each, of which a mixture of experts makes new ones without end (400 shapes: 229 MB, 18 MB with 32; measured).
_COMPILED = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


class WorkerDied(Exception):
    """The worker ended before its step did. `returncode` as in subprocess: negative for a signal."""

    def __init__(self, returncode: int) -> None:
        super().__init__(f"worker ended with {returncode}")
        self.returncode = returncode


class WorkerProcess:
    """A worker in a session of its own, so that a ^C on the terminal reaches only the parent.

    `log` gets its stderr outside of steps; `variables` are added to its environment, `folder` is its working folder.
    Create it in a thread that lives as long as it: the kernel kills it when that ends. `stop` and `kill` may be called
    from a signal handler.
    """

    def __init__(
        self, log: Path, threads: int, variables: Mapping[str, str] | None = None, folder: str | None = None
    ) -> None:
        environment = {
            "MALLOC_MMAP_THRESHOLD_": str(heap.MMAP_THRESHOLD),
            "MALLOC_TRIM_THRESHOLD_": _TRIM_THRESHOLD,
            **_COMPILED,
            **({} if "OMP_WAIT_POLICY" in os.environ else WAITING),
            **os.environ,
            messages.EVENTS_FD: "1",
            messages.PARENT: str(os.getpid()),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            **(variables or {}),
        }
        with open(log, "wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runner.execute.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment,
                start_new_session=True, cwd=folder,
            )  # fmt: skip
        self._to = cast(IO[bytes], self._process.stdin)
        self._from = cast(IO[bytes], self._process.stdout)
        self._sending = False
        self._stopping = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Request) -> None:
        """Send a request; `events` then yields its events. Call it in the thread that handles signals."""
        self._sending = True
        try:
            self._write(messages.encode_run(request))
        finally:
            self._sending = False
        if self._stopping:
            self._write(messages.encode_stop())

    def events(self) -> Iterator[Event]:
        """Yield the events of the request that was sent, its last one included. WorkerDied if that never comes."""
        for line in self._from:
            try:
                event: Event = json.loads(line)
            except ValueError:
                break  # torn: the worker died while it wrote
            yield event
            if event["event"] in messages.LAST:
                return
        raise WorkerDied(self._process.wait())

    @property
    def is_usable(self) -> bool:
        """Whether it lives and was not asked to stop: it takes another request."""
        return not self._stopping and self._process.poll() is None

    def stop(self) -> None:
        """Ask the worker to stop at the next safe point. A second call does nothing."""
        if self._stopping:
            return
        self._stopping = True
        if not self._sending:  # else the handler would write into the middle of the request; `run` sends it afterwards
            self._write(messages.encode_stop())

    def kill(self) -> None:
        """Kill the worker and its child processes."""
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, 9)
            else:
                self._process.kill()

    def close(self) -> None:
        """Close the worker's stdin, at whose end it exits; kill it after 10 s."""
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
            pass  # the worker died: reading its events raises WorkerDied
