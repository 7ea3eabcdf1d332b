from __future__ import annotations

import io
import re

from rich.console import Console
from rich.text import Text

from runner.progress.paint import Painter

WIDTH, HEIGHT = 20, 6


class Screen:
    """As much of a terminal as the painter uses: rows, a cursor, wrapping, scrolling away at the top."""

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.width, self.height = width, height
        self.gone: list[str] = []
        self.rows = [""]
        self.row = 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\n":
                self._down()
            elif part == "\x1b[2K":
                self.rows[self.row] = ""
            elif part == "\x1b[J":
                self.rows = [*self.rows[: self.row], ""]
            elif part.endswith("A"):
                self.row = max(0, self.row - int(part[2:-1]))
            elif not part.startswith(("\x1b", "\r")):
                for i in range(0, len(part), self.width):
                    if i:
                        self._down()
                    self.rows[self.row] = part[i : i + self.width]

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")
        if len(self.rows) > self.height:
            self.gone.append(self.rows.pop(0))
            self.row -= 1

    def resize(self, width: int) -> None:
        """As terminals do that wrap what is too long."""
        self.width = width
        self.rows = [r[i : i + width] for r in self.rows for i in range(0, max(1, len(r)), width)]
        self.row = len(self.rows) - 1

    @property
    def text(self) -> str:
        return "\n".join([*self.gone, *self.rows]).rstrip()


class Terminal:
    def __init__(self) -> None:
        self.screen, self.stream = Screen(), io.StringIO()
        self.console = Console(file=self.stream, width=WIDTH, height=HEIGHT, force_terminal=True, color_system=None)
        self.painter = Painter(self.console)

    def draw(self, *lines: str, above: tuple[str, ...] = ()) -> str:
        self.painter.draw([Text(line) for line in lines], [Text(line) for line in above])
        return self._shown()

    def finish(self, *lines: str) -> str:
        self.painter.finish([Text(line) for line in lines])
        return self._shown()

    def _shown(self) -> str:
        self.screen.feed(self.stream.getvalue())
        self.stream.seek(0)
        self.stream.truncate()
        return self.screen.text


def test_a_block_replaces_itself() -> None:
    terminal = Terminal()
    assert terminal.draw("one", "two") == "one\ntwo"
    assert terminal.draw("three") == "three"
    assert terminal.draw("four", "five", "six") == "four\nfive\nsix"
    assert terminal.finish("end") == "end"


def test_what_is_said_above_stays() -> None:
    terminal = Terminal()
    terminal.draw("one")
    assert terminal.draw("two", above=("a message longer than a row",)) == "a message longer tha\nn a row\ntwo"
    assert terminal.draw("three") == "a message longer tha\nn a row\nthree"


def test_lines_are_cut_to_the_width_and_the_block_to_the_height() -> None:
    terminal = Terminal()
    assert terminal.draw("x" * 50, *"abcdefgh") == "x" * 18 + "…\na\nb\nc\nd"


def test_a_narrower_terminal_wraps_the_block_which_is_still_replaced_whole() -> None:
    terminal = Terminal()
    terminal.draw("first", above=("kept",))
    terminal.draw("x" * 19, "y" * 19)
    terminal.console.width = 10
    terminal.screen.resize(10)
    assert terminal.screen.text == "kept\n" + "\n".join(["x" * 10, "x" * 9, "y" * 10, "y" * 9])
    assert terminal.draw("small") == "kept\nsmall"
    terminal.console.width = 20
    terminal.screen.resize(20)
    assert terminal.draw("large again") == "kept\nlarge again"


def test_the_end_is_not_cut() -> None:
    terminal = Terminal()
    terminal.draw("one")
    lines = [str(n) * 3 for n in range(9)]
    assert terminal.finish(*lines) == "\n".join(lines)


def test_nothing_to_show() -> None:
    terminal = Terminal()
    assert terminal.draw() == ""
    assert terminal.draw("one") == "one"
    assert terminal.finish() == ""


def test_a_terminal_that_left_is_silence() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    painter = Painter(Console(file=Gone(), force_terminal=True))
    painter.draw([Text("one")])
    painter.finish([Text("two")])
