"""Reads UTF-8 text from files, with complaints about files that hold something else. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runner.errors import Diagnostic, RecipeError

_MARK = "\ufeff"  # the byte order mark, which is not part of the text
_CHARACTERS = 1 << 16
_UTF8 = "save it with UTF-8 encoding"
_BINARY = "name a text file; if it is UTF-16 text, save it with UTF-8 encoding"


def decode(line: bytes, where: str) -> str:
    """Return the text of a line of a file, without a leading byte order mark.

    Raises RecipeError (R461) where it is not UTF-8.
    """
    try:
        return line.decode("utf-8").removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise _error(f"{where} is not UTF-8 text: {_byte(line, error.start)}") from None


def read(path: Path) -> Iterator[str]:
    """Yield the text of a file that `check` has passed, in pieces, with line breaks normalized to line feeds."""
    with path.open(encoding="utf-8-sig") as file:
        while text := file.read(_CHARACTERS):
            yield text


def check(path: Path) -> None:
    """Raise RecipeError (R461) with the line where a file is not UTF-8, or holds NUL as UTF-16 and binary files do."""
    number, rest = 1, b""
    with path.open("rb") as file:
        while part := file.read(_CHARACTERS):
            number, rest = _check(path, number, rest + part, last=False)
    _check(path, number, rest, last=True)


def _check(path: Path, number: int, data: bytes, *, last: bool) -> tuple[int, bytes]:
    """Return (the line number at the end of `data`, its last bytes that are the beginning of a character)."""
    rest = b""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if last or error.reason != "unexpected end of data":
            line = number + data.count(b"\n", 0, error.start)
            raise _error(f"`{path}` line {line} is not UTF-8 text: {_byte(data, error.start)}") from None
        data, rest = data[: error.start], data[error.start :]
    if (at := data.find(0)) >= 0:
        where = f"`{path}` line {number + data.count(10, 0, at)}"
        raise RecipeError([Diagnostic("R461", f"{where} holds the character U+0000, which no text has", _BINARY)])
    return number + data.count(b"\n"), rest


def _byte(data: bytes, at: int) -> str:
    return f"the byte 0x{data[at]:02x} cannot be decoded"


def _error(message: str) -> RecipeError:
    return RecipeError([Diagnostic("R461", message, _UTF8)])
