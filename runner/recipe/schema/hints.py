"""Guesses at the key that was meant by one that a schema does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runner import wording


def means(other: str, key: str, rules: Any) -> bool:
    """Return whether an unknown key `other` most likely means `key`, so that one complaint is enough."""
    known = rules.get("properties", {})
    return other not in known and (without_colon(other, [key]) is not None or wording.nearest(other, known) == key)


def without_colon(key: str, names: Iterable[str]) -> str | None:
    """Return the name that a key begins with, where a space follows in place of a colon."""
    return next((name for name in names if key.startswith(f"{name} ")), None)


def empty_before(key: str, written: Mapping[str, Any], properties: Mapping[str, Any]) -> str | None:
    """Return the known key without a value before unknown ones, whose indentation is lost."""
    last = None
    for name, value in written.items():
        if name == key:
            return last
        if name in properties:
            last = name if value is None and properties[name].get("type") in ("object", "array") else None
    return None


_W4 = "quantize.rtn: {data: calibration, bits: 4, group_size: 128, grid: weighted_mse}"
_W8 = "quantize.rtn: {scheme: w8a8}"
# Methods that other tools call a quantization, and that rewrite weights here, before any quantization.
_REWRITES = {
    "awq": ("transform.awq: {data: calibration, bits: 4, group_size: 128}", _W4),
    "smoothquant": ("transform.smooth: {data: calibration}", _W8),
    "smooth": ("transform.smooth: {data: calibration}", _W8),
    "quarot": ("transform.rotate: {}", "quantize.gptq: {data: calibration}"),
    "rotate": ("transform.rotate: {}", "quantize.gptq: {data: calibration}"),
}


def two_steps(kind: str) -> tuple[str, str] | None:
    """Return the message and the remedy for an unknown kind that is two steps here; None for any other."""
    family, _, method = kind.partition(".")
    found = _REWRITES.get(method.lower().replace("_", "")) if family == "quantize" else None
    if found is None:
        return None
    rewrite, quantization = found
    name = rewrite.partition(":")[0]
    message = f"`{kind}` is two steps: `{name}` rewrites the weights without changing what the model computes, then a "
    return message + "quantization rounds them", f"write `- {rewrite}`, then `- {quantization}`"


def elsewhere(key: str, properties: Mapping[str, Any]) -> str | None:
    """Return the parameter that other tools call `key`."""
    for name, part in properties.items():
        if key in part.get("x-runner-also", ()):
            return f"; did you mean `{name}`?"
    return None
