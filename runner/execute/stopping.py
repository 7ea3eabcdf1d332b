"""SIGINT and SIGTERM while a job runs: the first asks for a safe stop, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopping:
    """`asked` after the first signal, `forced` after the second; `by` is the signal that came last."""

    def __init__(self) -> None:
        self.asked = False
        self.forced = False
        self.by: int | None = None
        self.on_ask: Callable[[], None] = lambda: None
        self.on_force: Callable[[], None] = lambda: None

    def is_asked(self) -> bool:
        return self.asked

    @property
    def exit_code(self) -> int:
        """130 for a job that ^C ended at once, 75 for one that stopped or was told to end."""
        return 130 if self.forced and self.by == signal.SIGINT else 75

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.by = number
        if not self.asked:
            self.asked = True
            self.on_ask()
        else:
            self.forced = True
            self.on_force()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside; only the main thread can, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
