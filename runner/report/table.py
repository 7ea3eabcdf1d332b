"""Lay out rows of cells as aligned lines of text, on terminals of any width."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

GAP = 2
NARROWEST_LAST_COLUMN = 16

Cell = Text | str


def table(
    rows: Sequence[Sequence[Cell]], width: int, align: str = "", indent: int = 1, head: bool = False
) -> list[Text]:
    """Return lines of at most `width` cells.

    `align` has "<" or ">" for each column ("<" where it ends). The last column wraps under itself. Where too little
    room is left for it, every row becomes a line of its first columns and indented lines of its last; where even those
    do not fit, the cells of a row flow as words do. With `head` the first row is a heading.
    """
    texts = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    count = max((len(row) for row in texts), default=0)
    widths = [max((row[i].cell_len for row in texts if i < len(row)), default=0) for i in range(count)]
    empty = [w == 0 for w in widths]
    if head:
        for text in texts[0]:
            text.stylize("dim")
    taken = indent + sum(w + GAP for w, none in zip(widths[:-1], empty, strict=False) if not none)
    room = width - taken
    below = count > 1 and room < min(NARROWEST_LAST_COLUMN, widths[-1])
    if below and taken > width:
        return _flow(texts[1:] if head else texts, width, indent)
    lines: list[Text] = []
    for number, row in enumerate(texts):
        line = Text(" " * indent)
        for i, cell in enumerate(row[: count - 1]):
            if not empty[i]:
                pad = " " * (widths[i] - cell.cell_len)
                line.append_text(Text(pad) + cell if align[i : i + 1] == ">" else cell + Text(pad))
                line.append(" " * GAP)
        last = row[count - 1] if len(row) == count else Text()
        if below:
            line.rstrip()
            lines.append(line)
            if last and not (head and number == 0):
                lines += _hang(last, Text(" " * (indent + 4)), width)
        else:
            lines += _hang(last, line, width)
    return lines


def _flow(rows: Sequence[Sequence[Text]], width: int, indent: int) -> list[Text]:
    lines = []
    for row in rows:
        words = Text("  ").join(cell for cell in row if cell)
        first, *rest = _hang(words, Text(" " * indent), width)
        lines += [first]
        if rest:
            tail = Text(" ").join(Text(line.plain.strip()) for line in rest)
            lines += _hang(tail, Text(" " * (indent + 4)), width)
    return lines


def _hang(text: Text, first: Text, width: int) -> list[Text]:
    """Append `text` to `first`, wrapped; later lines are indented to where it begins."""
    column = first.cell_len
    wrapped = text.wrap(Console(width=max(10, width - column)), max(10, width - column)) or [Text()]
    lines = [first + part if i == 0 else Text(" " * column) + part for i, part in enumerate(wrapped)]
    for line in lines:
        line.rstrip()
    return lines
