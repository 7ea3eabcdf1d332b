"""Print text: styled on a terminal, plain elsewhere. NO_COLOR, COLUMNS and TERM are respected."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.text import Text

from runner.errors import visible

WIDTH_OF_FILES = 100  # of text to a file or a pipe, unless COLUMNS is set


def console(stream: TextIO | None = None) -> Console:
    """Return a console that prints text as it is: no markup, no highlighting, no wrapping of its own."""
    file = stream if stream is not None else sys.stdout
    width = None if file.isatty() or os.environ.get("COLUMNS", "").isdigit() else WIDTH_OF_FILES
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def show(lines: Iterable[Text | str], to: Console) -> None:
    """Print lines; the terminal wraps long ones, so that paths can be copied."""
    for line in lines:
        if isinstance(line, Text):
            line.plain = visible(line.plain)
        to.print(visible(line) if isinstance(line, str) else line, soft_wrap=True)


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which lines can be repainted in place."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
