"""Where text for people goes: styled on a terminal, plain elsewhere; NO_COLOR, COLUMNS and TERM are heeded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.text import Text

from runner.errors import visible

WIDTH_OF_FILES = 100  # of what goes to a file or a pipe, unless COLUMNS says otherwise


def console(stream: TextIO | None = None) -> Console:
    """A console that prints text as it is: no markup, no highlighting, no wrapping of its own."""
    file = stream if stream is not None else sys.stdout
    width = None if file.isatty() or os.environ.get("COLUMNS", "").isdigit() else WIDTH_OF_FILES
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def show(lines: Iterable[Text | str], to: Console) -> None:
    """Print lines; long ones are left to the terminal to wrap, so that paths can be copied."""
    for line in lines:
        if isinstance(line, Text):
            line.plain = visible(line.plain)
        to.print(visible(line) if isinstance(line, str) else line, soft_wrap=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether a picture can be repainted in place there."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
