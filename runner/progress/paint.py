"""A block of lines at the bottom of a terminal that is redrawn in place, also after resizing.

A terminal that becomes narrower wraps what was drawn, so the block takes more rows than it was written with; how far
to move up is therefore computed from the old lines and the current width, at every repaint.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from runner.errors import visible

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Painter:
    """Owns the last lines of `console`'s terminal until `finish`. A closed terminal stops the output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: tuple[int, ...] = ()  # cells of each line on the screen
        self._dead = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows that a frame may use; the last column stays free, or terminals wrap early."""
        width, height = self._console.size
        return max(10, width - 1), max(4, height - 1)

    def draw(self, frame: Sequence[Text], above: Sequence[Text] = ()) -> None:
        """Replace the block by `frame`, cut to the terminal; `above` is printed above it and scrolls away."""
        width, height = self.size
        lines = [line.copy() for line in frame[:height]]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        self._write(HIDE_CURSOR, [*above, *lines], "")
        self._drawn = tuple(line.cell_len for line in lines)

    def finish(self, frame: Sequence[Text]) -> None:
        """Print `frame` in full, even where it is larger than the terminal, and leave the cursor below it."""
        self._write("", frame, SHOW_CURSOR)
        self._drawn = ()

    def _over(self, lines: Sequence[Text]) -> str:
        """Return the text that draws `lines` over the block.

        Each row is cleared separately and completely. tmux adds to its history what is cleared from the first row of
        the screen on, at every repaint; and a partly cleared row still counts as wrapped.
        """
        width = max(1, self._console.size.width)
        rows = sum(max(1, -(-cells // width)) for cells in self._drawn)
        with self._console.capture() as captured:
            for line in lines:
                line.plain = visible(line.plain)
                self._console.print(line, soft_wrap=True)
        text = "".join(f"\x1b[2K{line}\n" for line in captured.get().split("\n")[:-1])
        return (f"\x1b[{rows}A" if rows else "") + "\r" + text + ("\x1b[J" if text else "\x1b[2K")

    def _write(self, before: str, lines: Sequence[Text], after: str) -> None:
        if self._dead:
            return
        try:
            self._console.file.write(before + self._over(lines) + after)
            self._console.file.flush()
        except (OSError, ValueError):
            self._dead = True
