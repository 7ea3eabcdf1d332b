"""Build HTML and SVG by nested calls: plain text is escaped, `Markup` is not."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMGT]?B|s|min|h)(?!\w))")
VOID = frozenset({"br", "col", "hr", "img", "link", "meta"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Part = Markup | str | None


def tag(element: str, /, *parts: Part | Iterable[Part], **attributes: str | float | bool | None) -> Markup:
    """Make an element. `class_` and the like lose the `_`, other `_` become `-`; False and None omit an attribute."""
    words = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        words.append(key if value is True else f'{key}="{html.escape(shown)}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if element in VOID else f"{opening}{join(*parts)}</{element}>")


def join(*parts: Part | Iterable[Part]) -> Markup:
    """Concatenate parts; text among them is escaped."""
    made = []
    for part in parts:
        if part is None:
            continue
        if isinstance(part, Markup):
            made.append(str(part))
        elif isinstance(part, str):
            made.append(html.escape(_printable(part)))
        else:
            made.append(join(*part))
    return Markup("".join(made))


def prose(text: str) -> str:
    """Return text in which a number and its unit stay on one line."""
    return _UNIT.sub("\u00a0", text)


def _printable(text: str) -> str:
    """Replace the control characters that HTML does not allow."""
    return "".join(c if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) else "\ufffd" for c in text)
