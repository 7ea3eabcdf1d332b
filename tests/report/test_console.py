from __future__ import annotations

import io

from rich.text import Text

from runner.errors import StoreError
from runner.report.console import console, show


def test_what_steers_a_terminal_is_shown_as_text() -> None:
    stream = io.StringIO()
    show(["a\x1b[2Jb", Text("c\x9b31md", "bold"), "e\tf"], console(stream))
    assert stream.getvalue() == "a\ufffd[2Jb\nc\ufffd31md\ne       f\n"


def test_errors_too() -> None:
    assert StoreError("a\x1b]0;b", "c\u202ed").render() == "error: a\ufffd]0;b\nhelp: c\ufffdd"
