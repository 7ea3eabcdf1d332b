"""Plain scalars as YAML 1.2's core schema reads them: `1e-4` is a number, `no` and `on` are text."""

from __future__ import annotations

import math
import re

from runner.recipe.syntax.nodes import Scalar

NULLS = {"", "~", "null", "Null", "NULL"}
TRUE = {"true", "True", "TRUE"}
FALSE = {"false", "False", "FALSE"}
INTEGER = re.compile(r"[-+]?[0-9]+")
OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
LARGEST = 2**63 - 1


class NumberError(ValueError):
    """A number that a recipe cannot hold; its message gives the reason."""


def read(text: str) -> Scalar:
    """Return the value of an unquoted scalar. Raises NumberError."""
    if text in NULLS:
        return None
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    number = read_number(text)
    return text if number is None else number


def read_number(text: str) -> int | float | None:
    """Return the number that `text` writes, or None where it writes none. Raises NumberError."""
    # int() of thousands of digits takes quadratic time and then fails: judge them by their count.
    if len(text) > 400 and (FLOAT.fullmatch(text) or OCTAL_OR_HEX.fullmatch(text)):
        raise NumberError(f"a number of {len(text)} digits is too long")
    if INTEGER.fullmatch(text):
        return _bounded(int(text), text)
    if OCTAL_OR_HEX.fullmatch(text):
        return _bounded(int(text, 0), text)
    if NOT_FINITE.fullmatch(text):
        raise NumberError(f"`{text}` is not a finite number")
    if FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise NumberError(f"`{text}` is too large a number")
        return value
    return None


def _bounded(value: int, text: str) -> int:
    if abs(value) > LARGEST:
        shown = text if len(text) <= 40 else f"{text[:12]}... ({len(text)} digits)"
        raise NumberError(f"`{shown}` is too large: an integer goes up to {LARGEST}")
    return value
