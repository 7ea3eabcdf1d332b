"""The table of codes."""

from __future__ import annotations

import re
from pathlib import Path

import runner
from runner.recipe.codes import CODES


def mentioned(folder: Path) -> set[str]:
    return {
        code
        for file in folder.rglob("*.py")
        if file.name not in ("codes.py", "errors.py")
        for code in re.findall(r"\bR[1-8]\d\d\b", file.read_text(encoding="utf-8"))
    }


def test_the_table_has_the_codes_that_are_used() -> None:
    assert mentioned(Path(runner.__path__[0])) == set(CODES)


def test_every_code_has_a_whole_message_in_a_test() -> None:
    shown = {
        "".join(code)
        for file in Path(__file__).parent.rglob("*.py")
        for code in re.findall(r"(?:error|warning)\[(R\d+)\]|refused\(.*\"(R\d+)\"", file.read_text(encoding="utf-8"))
    }
    assert shown >= {code for code in CODES if code < "R400"}, "R4xx and later are shown beside what finds them"


def test_meanings_are_one_line() -> None:
    assert all(meaning and "\n" not in meaning for meaning in CODES.values())
    assert list(CODES) == sorted(CODES)
