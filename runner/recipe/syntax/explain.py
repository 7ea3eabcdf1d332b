"""Explains errors of YAML by their most likely cause: a missing colon, an odd character, an indentation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Special spaces, characters without width, and look-alikes of YAML's punctuation.
INVISIBLE = re.compile("[\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u202f\u205f-\u2064\u3000\ufeff]")
LOOK_ALIKE = re.compile("[\u2018\u2019\u201a-\u201f\u2013\u2014\u2212\uff0c\uff1a\uff5b\uff5d\uff3b\uff3d\u2022]")
QUOTES = ("\u2018", "\u201c")
_MEANT = {"\uff1a": ":", "\uff0c": ",", "\uff5b": "{", "\uff5d": "}", "\uff3b": "[", "\uff3d": "]", "\u2013": "-",
          "\u2014": "-", "\u2212": "-", "\u2022": "-"}  # fmt: skip
_KEY = re.compile(r"\s*(?:- +)*(?:\"[^\"]*\"|'[^']*'|[^\s\"'#{\[][^:#]*?):(?: |$)")
_UNSPACED = re.compile(r"\s*(?:- +)*([A-Za-z_][\w.]*):(\S.*)")


@dataclass(frozen=True)
class Explanation:
    """A complaint: the line and column, counted from 0, the length, what is wrong, and the remedy."""

    line: int
    column: int
    length: int
    message: str
    help: str


def odd_character(text: str) -> tuple[int, str, str] | None:
    """Return (position, description, remedy) of the first character that looks like another one."""
    found = INVISIBLE.search(text) or LOOK_ALIKE.search(text)
    if found is None:
        return None
    name = unicodedata.name(found[0], "a character without a name").lower()
    what = f"the character U+{ord(found[0]):04X} ({name})"
    if INVISIBLE.match(found[0]):
        return found.start(), what, "remove it, or write an ordinary space"
    return found.start(), what, f"write `{_MEANT.get(found[0], chr(34))}`, or put the text in quotes"


def odd_text(text: str, noun: str) -> tuple[int, str, str] | None:
    """Return `odd_character` of a key, or of a value without spaces; prose may hold any character."""
    quoted = noun == "value" and text.startswith(QUOTES)
    if (noun == "value" and " " in text) or not (quoted or INVISIBLE.search(text)):
        return None
    return odd_character(text)


def explain(
    lines: Sequence[str], problem: str, at: tuple[int, int], begun: tuple[int, int] | None
) -> Explanation | None:
    """Return an explanation of PyYAML's problem at (line, column); None where the cause is not known.

    `begun` is the place where the construct with the problem begins.
    """
    before = _line_before(lines, at[0])
    for number in dict.fromkeys([at[0], *([begun[0]] if begun else []), *([before] if before is not None else [])]):
        if number < len(lines) and (odd := odd_character(lines[number].split(" #")[0])) is not None:
            where, what, help = odd
            return Explanation(number, where, 1, f"{what} stands where YAML wants one of its own", help)
    if problem.startswith("could not find expected ':'") and begun is not None:
        return _missing_colon(lines, begun[0])
    if problem.startswith("mapping values are not allowed") and before is not None:
        return _not_allowed(lines, at, before)
    if problem.startswith("expected <block end>, but found") and at[0] < len(lines):
        return _no_block(lines, at)
    return None


def _line_before(lines: Sequence[str], number: int) -> int | None:
    """Return the number of the nearest earlier line that is neither blank nor a comment."""
    above = range(min(number, len(lines)) - 1, -1, -1)
    return next((i for i in above if lines[i].strip() and not lines[i].lstrip().startswith("#")), None)


def _missing_colon(lines: Sequence[str], number: int) -> Explanation | None:
    line = lines[number].split(" #")[0].rstrip()
    written = re.sub(r"^\s*(?:- +)*", "", line)
    if not written or _KEY.match(line):
        return None
    column = len(line) - len(written)
    if (unspaced := _UNSPACED.match(line)) is not None:
        key, value = unspaced[1], unspaced[2]
        message = f"`{written}` has no space after its colon, and so is no key with a value"
    else:
        key, _, value = written.partition(" ")
        message = f"`{written}` has no colon, and so is no key with a value"
    return Explanation(number, column, len(written), message, f"write `{key}: {value.strip()}`".replace(": `", ":`"))


def _not_allowed(lines: Sequence[str], at: tuple[int, int], before: int) -> Explanation | None:
    line, above = lines[at[0]], lines[before]
    key = line[: at[1]].strip()
    if ": " in key:
        first = line.index(": ") + 2
        message = "a value that holds `: ` must be in quotes"
        return Explanation(at[0], first, len(line.rstrip()) - first, message, f'write `"{line[first:].strip()}"`')
    if not _KEY.match(above):
        return _missing_colon(lines, before)
    column = len(above) - len(re.sub(r"^\s*(?:- +)*", "", above))
    begins = len(line) - len(line.lstrip())
    name = above[column:].partition(":")[0]
    message = f"`{key}` is indented further than `{name}` above it, which has a value already"
    return Explanation(
        at[0], begins, len(key), message, f"begin both in the same column ({column + 1} or {begins + 1})"
    )


def _no_block(lines: Sequence[str], at: tuple[int, int]) -> Explanation | None:
    """Return the explanation of a line that begins in a column where no earlier line does."""
    line = lines[at[0]]
    column = len(line) - len(line.lstrip())
    open: list[tuple[int, str]] = []
    for above in lines[: at[0]]:
        match = _KEY.match(above)
        if match is None:
            continue
        begins = len(above) - len(re.sub(r"^\s*(?:- +)*", "", above))
        open = [*(entry for entry in open if entry[0] < begins), (begins, above[begins:].partition(":")[0])]
    if not open or column != at[1] or any(begins == column for begins, _ in open):
        return None
    key = line.strip().partition(":")[0]
    places = [f"{begins + 1} (as `{name}`)" for begins, name in reversed(open)]
    message = f"`{key}` begins in column {column + 1}, in which nothing above it does"
    return Explanation(at[0], column, len(key), message, f"begin it in column {' or '.join(places)}")


def is_never_closed(problem: str, opened: tuple[int, int], at: tuple[int, int]) -> bool:
    """Return whether a quote, brace or bracket is still open at the next line, or at the end."""
    if "end of stream" in problem or "<stream end>" in problem:
        return True
    return problem.startswith("expected ',' or ") and at[0] > opened[0]
