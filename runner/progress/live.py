"""The sink for terminals: a table of the steps that repaints itself in place (see frame.py) until the job ends."""

from __future__ import annotations

import threading
import time
from typing import TextIO

from rich.console import Console
from rich.text import Text

from runner.progress import board, frame
from runner.progress.events import Event
from runner.progress.paint import Painter

SECONDS_BETWEEN_FRAMES = 0.125


class Live:
    """Draws on `stream`, a terminal, from its own thread, so that clocks continue while a layer computes."""

    def __init__(self, stream: TextIO) -> None:
        self._painter = Painter(Console(file=stream, highlight=False, markup=False, emoji=False))
        self._board = board.Board()
        self._lock = threading.Lock()
        self._above: list[Text] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repaint, name="live view", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        """Record the event; the thread draws."""
        with self._lock:
            self._board.send(event)
            if event["event"] == "message":
                self._above.append(message_text(event, self._board))

    def close(self) -> None:
        """Draw the final lines and stop. A second call does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        width, _ = self._painter.size
        self._painter.finish([*self._above, *frame.final(self._board, width)])

    def _repaint(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_FRAMES):
            with self._lock:
                width, height = self._painter.size
                lines = frame.live(self._board, time.time(), width, height)
                above, self._above = self._above, []
            self._painter.draw(lines, above)


def message_text(event: Event, job: board.Board) -> Text:
    """Return a `message` event as styled text, after the step that it is about."""
    step = job.step_of(event)
    text = Text(f"{step.id}: " if step else "", style="dim")
    text.append(str(event["text"]), style="not dim yellow" if event.get("level") == "warning" else "not dim")
    return text
