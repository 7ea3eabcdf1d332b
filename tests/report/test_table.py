from __future__ import annotations

from rich.text import Text

from runner.report.table import table

ROWS = [
    ["step", "state", "memory", "reason"],
    ["one", "run", "1.20 GB", "`bits` changed 4 → 3"],
    ["two-is-long", "cached", "", "nothing changed since the last run of this recipe"],
]


def shown(rows: list[list[str]], width: int, **options: object) -> str:
    return "\n".join(line.plain for line in table(rows, width, **options)) + "\n"  # type: ignore[arg-type]


def test_columns_are_aligned_and_the_last_wraps_under_itself() -> None:
    assert (
        shown(ROWS, 60, align="<<>", head=True)
        == """\
 step         state    memory  reason
 one          run     1.20 GB  `bits` changed 4 → 3
 two-is-long  cached           nothing changed since the
                               last run of this recipe
"""
    )


def test_without_room_the_last_column_goes_below() -> None:
    assert (
        shown(ROWS, 40, align="<<>", head=True)
        == """\
 step         state    memory
 one          run     1.20 GB
     `bits` changed 4 → 3
 two-is-long  cached
     nothing changed since the last run
     of this recipe
"""
    )


def test_with_less_room_cells_flow() -> None:
    assert (
        shown(ROWS, 24, align="<<>", head=True)
        == """\
 one  run  1.20 GB
     `bits` changed 4 →
     3
 two-is-long  cached
     nothing changed
     since the last run
     of this recipe
"""
    )


def test_a_column_without_content_takes_no_room() -> None:
    assert shown([["a", "", "b"], ["c", "", "d"]], 40) == " a  b\n c  d\n"


def test_cells_keep_their_style() -> None:
    (line,) = table([[Text("a", "red"), "b"]], 40)
    assert [(span.style, line.plain[span.start : span.end]) for span in line.spans] == [("red", "a")]


def test_wide_characters_are_counted_in_cells() -> None:
    assert shown([["日本", "x"], ["a", "y"]], 40) == " 日本  x\n a     y\n"


def test_nothing() -> None:
    assert table([], 40) == []
