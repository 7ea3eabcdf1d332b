from __future__ import annotations

import io
import time

import pytest

from runner.progress.live import Live
from tests.progress import recorded


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Tty:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    return Tty()


def test_it_repaints_by_itself_and_leaves_the_end_standing(terminal: Tty) -> None:
    live = Live(terminal)
    for event in recorded.JOB[:13]:
        live.send(event)
    deadline = time.monotonic() + 10
    while "quantize.gptq" not in terminal.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "warning" not in terminal.getvalue()
    assert "Cholesky failed at damping 0.01, raised to 0.02" in terminal.getvalue()
    for event in recorded.JOB[13:]:
        live.send(event)
    live.close()
    live.close()
    text = terminal.getvalue()
    assert text.endswith("\x1b[?25h")
    assert text.count("gate missed: ") == 1


def test_no_color(terminal: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    live = Live(terminal)
    for event in recorded.JOB:
        live.send(event)
    live.close()
    assert "\x1b[3" not in terminal.getvalue()
    assert "✗ quality" in terminal.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")


def test_a_message_that_never_was_painted_is_not_lost(terminal: Tty) -> None:
    live = Live(terminal)
    live.send(recorded.at(0, "message", step=None, level="info", text="hello"))
    live.close()
    assert "hello\n" in terminal.getvalue()
