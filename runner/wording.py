"""Describe values and schemas in plain words, for messages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def show(value: Any) -> str:
    """Return a value as it is written in a recipe, shortened where it is long."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:56] + ('..."' if isinstance(value, str) else "...")


def listed(values: Iterable[Any]) -> str:
    return ", ".join(show(value) for value in values)


def ticked(names: Iterable[str], joint: str = "and") -> str:
    """Return names in backticks: `a`, `b` and `c`."""
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {joint} {quoted[-1]}"


def first(names: Sequence[str]) -> str:
    """Return "`a`", "`a` and 3 more"."""
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"`{names[0]}`{more}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word nearest to `word`, or None."""
    names = list(known)
    for name in names:
        if name.lower() == word.lower().replace("-", "_"):
            return name
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?`, or "" where no known word is near."""
    name = nearest(word, known)
    return f"; did you mean `{name}`?" if name is not None else ""


def nearest_kind(word: str, kinds: Iterable[str]) -> str | None:
    """Return the kind nearest to `word`, which may be only the method, or None."""
    by_method = {kind.rpartition(".")[2]: kind for kind in kinds}
    method = nearest(word.rpartition(".")[2], by_method)
    return nearest(word, by_method.values()) or (by_method[method] if method is not None else None)


def label(path: Iterable[str | int]) -> str:
    """Return a path as one name: `gates.perplexity`, `overrides."*.q_proj".bits`, `ignore[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if part.replace("_", "a").replace("-", "a").isalnum() else json.dumps(part, ensure_ascii=False)
            text += f".{word}" if text else word
    return text


def expects(schema: Mapping[str, Any]) -> str:
    """Describe what a schema allows, to follow "must be"."""
    if "x-runner-expects" in schema:
        return str(schema["x-runner-expects"])
    if "const" in schema:
        return show(schema["const"])
    if "enum" in schema:
        return ("one of " if len(schema["enum"]) > 1 else "") + listed(schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return ", or ".join(expects(option) for option in schema[choice])
    names = schema.get("type", "value")
    names = [names] if isinstance(names, str) else names
    return " or ".join(_TYPES.get(name, "a value") + _limits(name, schema) for name in names)


def _limits(name: str, schema: Mapping[str, Any]) -> str:
    if name in ("integer", "number"):
        low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
        high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
        multiple = f", a multiple of {show(schema['multipleOf'])}" if "multipleOf" in schema else ""
        if low is not None and high is not None:
            return f" from {show(low)} to {show(high)}{multiple}"
        parts = []
        if low is not None:
            parts.append(f"of at least {show(low)}")
        if above is not None:
            parts.append(f"above {show(above)}")
        if high is not None:
            parts.append(f"of at most {show(high)}" if not parts else f"at most {show(high)}")
        if below is not None:
            parts.append(f"below {show(below)}")
        return (" " if parts else "") + " and ".join(parts) + multiple
    if name == "string":
        if "pattern" in schema:
            return f" that matches `{schema['pattern']}`"
        if schema.get("minLength"):
            least = schema["minLength"]
            return " that is not empty" if least == 1 else f" of at least {least} characters"
    if name == "array" and "items" in schema:
        return f" of {_plural(schema['items'])}"
    return ""


def _plural(schema: Mapping[str, Any]) -> str:
    words = {"integer": "integers", "number": "numbers", "string": "texts", "object": "mappings", "array": "lists"}
    return words.get(str(schema.get("type")), "values")
