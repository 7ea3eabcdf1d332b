"""The sink for programs: every event as one line of JSON, and nothing else on that stream."""

from __future__ import annotations

from typing import TextIO

from runner.progress.events import Event, encode


class JsonLines:
    """Writes to `stream` and flushes each line. A closed stream stops the output, never the job.

    `job` is added to every event that does not name its job, where several jobs run at once.
    """

    def __init__(self, stream: TextIO, job: str = "") -> None:
        self._stream: TextIO | None = stream
        self._job = {"job": job} if job else {}

    def send(self, event: Event) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(encode({**event, **self._job}) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def close(self) -> None:
        self._stream = None
