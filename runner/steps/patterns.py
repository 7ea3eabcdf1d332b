"""The params of one module: shell patterns of `ignore`, `overrides` and `per_layer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def module_params(params: Mapping[str, Any], module: str) -> dict[str, Any] | None:
    """Return the params of one module; None where `ignore` names it.

    `overrides` and `per_layer` are applied in order. Patterns are shell globs over the module's full name, or over its
    tail ("*.q_proj", "q_proj", "lm_head").
    """
    if any(matches(pattern, module) for pattern in params.get("ignore", ())):
        return None
    result = dict(params)
    for pattern, changes in params.get("overrides", {}).items():
        if matches(pattern, module):
            result |= changes
    for pattern, sparsity in params.get("per_layer", {}).items():
        if matches(pattern, module):
            result["sparsity"] = sparsity
    return result


def matches(pattern: str, module: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(module, pattern) or fnmatchcase(module, f"*.{pattern}")
