"""The view of several jobs that run at once, for terminals: one table that repaints itself (see jobs_frame.py)."""

from __future__ import annotations

import threading
import time
from typing import TextIO

from rich.console import Console
from rich.text import Text

from runner.progress import jobs_frame
from runner.progress.board import Board
from runner.progress.events import Event, Sink
from runner.progress.live import SECONDS_BETWEEN_FRAMES, message_text
from runner.progress.paint import Painter


class LiveJobs:
    """Draws on `stream`, a terminal, from its own thread. `sink` adds a job; `close` clears the table."""

    def __init__(self, stream: TextIO) -> None:
        self._painter = Painter(Console(file=stream, highlight=False, markup=False, emoji=False))
        self._jobs: list[tuple[str, Board]] = []
        self._lock = threading.Lock()
        self._above: list[Text] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repaint, name="live view", daemon=True)
        self._thread.start()

    def sink(self, name: str) -> Sink:
        """Return a sink for the events of a job; the table names it `name`."""
        board = Board()
        with self._lock:
            self._jobs.append((name, board))
        return _JobSink(self, name, board)

    def record(self, name: str, board: Board, event: Event) -> None:
        """Record an event of a job; the thread draws."""
        with self._lock:
            board.send(event)
            if event["event"] == "message":
                self._above.append(Text(f"{name}: ", "dim").append_text(message_text(event, board)))

    def close(self) -> None:
        """Stop, and leave nothing but the messages on the terminal. A second call does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        self._painter.finish(self._above)

    def _repaint(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_FRAMES):
            with self._lock:
                width, height = self._painter.size
                lines = jobs_frame.live(self._jobs, time.time(), width, height)
                above, self._above = self._above, []
            self._painter.draw(lines, above)


class _JobSink:
    """The sink of one job in the table."""

    def __init__(self, view: LiveJobs, name: str, board: Board) -> None:
        self._view, self._name, self._board = view, name, board

    def send(self, event: Event) -> None:
        self._view.record(self._name, self._board, event)

    def close(self) -> None:
        """Do nothing: the table is closed once for all jobs."""
