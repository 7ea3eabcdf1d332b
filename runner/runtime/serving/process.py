"""The process of a server: started by a supervisor that ends it and all its children, whatever happens to this one."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from runner.errors import MachineError, StepFailed
from runner.runtime.serving.client import Client, Unreachable
from runner.runtime.serving.commands import HOST
from runner.system import process_tree, supervisor

_POLL = 0.2  # seconds between two looks at a server that starts
_SAMPLES = 1.0  # seconds between two measurements of memory
_SETTLES = 3.0  # seconds between the end of a connection and that of the process
_LINES = 10
_ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .+")


def free_port(wanted: int | None) -> int:
    """Return a port of this machine that nothing listens on: `wanted`, or any. MachineError where that is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, wanted or 0))
        except OSError as error:
            raise MachineError(
                f"port {wanted} of {HOST} cannot be had: {error.strerror}",
                "leave `port` out, for one that is free, or end what listens there",
            ) from None
        return int(found.getsockname()[1])


class ServerProcess:
    """A running server. `log` gets all that it writes; `memory` is the most that its processes had together."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self.memory = 0
        self._seen: dict[int, int] = {}
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runner.system.supervisor"], stdin=subprocess.PIPE, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self._stdin = cast(IO[bytes], self._process.stdin)
        with suppress(BrokenPipeError):  # it died at once: `check` reports that
            self._stdin.write(json.dumps({"command": list(command), "environment": dict(environment)}).encode() + b"\n")
            self._stdin.flush()
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def check(self) -> None:
        """Raise StepFailed, with the server's last words, where it ended."""
        code = self._process.poll()
        if code is not None:
            number = code - 128 if 128 < code <= 128 + signal.NSIG else -code  # the supervisor's, and its own
            how = f"signal {number}" if number > 0 else f"status {code}"
            help = "the log of the step has all its words"
            if number == signal.SIGILL:
                how += ", an instruction that this processor does not have"
                help = "install a build of the server for this processor"
            raise StepFailed(f"the server ended with {how}{self.last_words()}", help)

    def settle(self) -> None:
        """Raise StepFailed, with the server's last words, where it ends within a moment."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_SETTLES)
        self.check()

    def wait_until_ready(self, client: Client, path: str, seconds: float, safe_point: Callable[[], None]) -> float:
        """Wait until the server answers `path` with 200; return the seconds. StepFailed where it does not in time."""
        start = time.perf_counter()
        while True:
            safe_point()
            self.check()
            with suppress(Unreachable):
                if client.status(path) == 200:
                    self.check()  # no other process answered in its place
                    return time.perf_counter() - start
            if time.perf_counter() - start > seconds:
                raise StepFailed(
                    f"the server did not answer within {seconds:g} seconds{self.last_words()}",
                    "raise `start_timeout`, or see the log of the step for what it waits for",
                )
            time.sleep(_POLL)

    def last_words(self) -> str:
        """Return the errors that the log names and its last lines, for a message; "" of an empty one."""
        lines = [line.rstrip() for line in self.text().splitlines() if line.strip()]
        last = lines[-_LINES:]
        errors = dict.fromkeys(found[0] for line in lines[:-_LINES] if (found := _ERROR.search(line)))
        shown = [*list(errors)[:3], *(["..."] if errors else []), *last]
        return "".join(["; its last words:", *(f"\n    {line[:300]}" for line in shown)]) if shown else ""

    def text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End the server and all that it started."""
        self._ended.set()
        self._seen |= process_tree.descendants(self._process.pid)
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(timeout=supervisor.GRACE + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        process_tree.kill(self._seen)  # where the supervisor itself was killed
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLES):
            found = process_tree.descendants(self._process.pid)
            self._seen |= found
            self.memory = max(self.memory, process_tree.memory(found))
