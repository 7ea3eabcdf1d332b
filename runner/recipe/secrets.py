"""Hides secrets of a recipe or a command line in everything that is reported.

A param, or any other key of the recipe, with a name such as `token`, `api_key` or `password` holds a secret; its value
is hidden wherever it occurs. So are credentials in URLs and the tokens of well-known services, by their form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "•••"
_NAMES = re.compile(
    r"(?:^|[_\-.])(?:secret|password|passwd|passphrase|credentials?|auth|token|"
    r"(?:api|access|private|secret|signing)[_-]?key(?:[_-]id)?)$",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"""([\w.-]+)["']?\s*[:=]\s*(?:"([^"]*)"|'([^']*)'|([^\s,{}\[\]"']+))""")
_SHORTEST = 4  # a shorter value would hide half of the text
_FORMS = re.compile(
    r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)"  # user:password of a URL
    r"|\bhf_[A-Za-z0-9]{16,}\b|\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bgithub_pat_\w{20,}\b|\bglpat-[\w-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9_-]{20,}"
)


def is_secret(name: str) -> bool:
    """Return whether the value of a key of that name is a secret."""
    return _NAMES.search(name) is not None


def values(document: Any) -> frozenset[str]:
    """Return the secrets in a recipe, by the names of their keys."""
    return frozenset(_values(document))


def hide_in_text(text: str, source: str) -> str:
    """Return `text` without the secrets that `source`, lines of YAML or of a command, gives to secret names."""
    found = ((name, a or b or c) for name, a, b, c in _ENTRY.findall(source))
    known = frozenset(value for name, value in found if is_secret(name) and len(value) >= _SHORTEST)
    return str(hide(text, known))


def hide_in_word(word: str) -> str:
    """Return one argument of a command, with the value of `name=value` hidden where the name is secret."""
    option = "--set=" if word.startswith("--set=") else ""
    name, equals, value = word.removeprefix(option).partition("=")
    if equals and is_secret(name) and len(value) >= _SHORTEST:
        return f"{option}{name}={HIDDEN}"
    return str(hide(word, frozenset()))


def _values(document: Any) -> Iterable[str]:
    if isinstance(document, Mapping):
        for key, value in document.items():
            if is_secret(str(key)) and isinstance(value, str | int | float) and not isinstance(value, bool):
                if len(str(value)) >= _SHORTEST:
                    yield str(value)
            else:
                yield from _values(value)
    elif isinstance(document, list | tuple):
        for entry in document:
            yield from _values(entry)


def hide(value: Any, known: frozenset[str]) -> Any:
    """Return JSON without the `known` secrets, and without those that are recognized by their form."""
    if isinstance(value, str):
        for secret in sorted(known, key=len, reverse=True):
            value = value.replace(secret, HIDDEN)
        return _FORMS.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {hide(key, known): _entry(str(key), entry, known) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [hide(entry, known) for entry in value]
    return value


def _entry(key: str, value: Any, known: frozenset[str]) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return HIDDEN if number and is_secret(key) and str(value) in known else hide(value, known)
