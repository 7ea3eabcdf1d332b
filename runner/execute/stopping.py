"""SIGINT, SIGTERM and a time limit while a job runs: the first asks for a safe stop, a second signal ends it now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from runner.errors import MachineError


class Stopping:
    """The state of stopping: `asked` after the first signal or `timeout` seconds, `forced` after another signal.

    `by` is the last signal; `timed_out` is true where the time limit came first.
    """

    def __init__(self, timeout: float | None = None) -> None:
        if timeout is not None and not hasattr(signal, "setitimer"):
            raise MachineError("this system has no timer that could stop a job", "leave out `--timeout`")
        self.timeout = timeout
        self.timed_out = False
        self.asked = False
        self.forced = False
        self.by: int | None = None
        self.on_ask: Callable[[], None] = lambda: None
        self.on_force: Callable[[], None] = lambda: None

    def is_asked(self) -> bool:
        return self.asked

    @property
    def exit_code(self) -> int:
        """130 for a job that ^C ended at once, 75 for one that stopped at a safe point or got SIGTERM."""
        return 130 if self.forced and self.by == signal.SIGINT else 75

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.by = number
        if not self.asked:
            self.asked = True
            self.on_ask()
        else:
            self.forced = True
            self.on_force()

    def _handle_alarm(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = self.timed_out = True
            self.on_ask()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside; only the main thread can, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        if self.timeout is not None:
            previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._handle_alarm)
            signal.setitimer(signal.ITIMER_REAL, self.timeout)
        try:
            yield
        finally:
            if self.timeout is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)
