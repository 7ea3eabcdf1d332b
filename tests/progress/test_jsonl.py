from __future__ import annotations

import io
import json

from runner.progress.jsonl import JsonLines
from tests.progress import recorded


def test_every_event_is_one_line_of_json_and_nothing_else() -> None:
    stream = io.StringIO()
    sink = JsonLines(stream)
    for event in recorded.JOB:
        sink.send(event)
    sink.close()
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == recorded.JOB


def test_text_stays_readable_on_one_line() -> None:
    stream = io.StringIO()
    JsonLines(stream).send(recorded.at(0, "message", step=None, level="info", text="1 → 2\nthree"))
    assert stream.getvalue() == '{"event":"message","time":1000,"step":null,"level":"info","text":"1 → 2\\nthree"}\n'


def test_a_reader_that_left_silences_the_sink_and_not_the_job() -> None:
    class Broken(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            raise BrokenPipeError

    stream = Broken()
    sink = JsonLines(stream)
    for event in recorded.JOB:
        sink.send(event)
    assert stream.writes == 1
