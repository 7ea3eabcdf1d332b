"""Why a step runs: what changed between its previous and its present key inputs, as a phrase."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runner.plan.types import PlannedStep

Previous = Mapping[str, Mapping[str, Any]]  # step id → key_inputs, of the most recent job of the same recipe name

_SHOWN = 3
_ABSENT = object()


def reason(step: PlannedStep, state: str, states: Mapping[str, str], previous: Previous | None) -> str:
    """Return a phrase for `runner plan`.

    `states` are those of the earlier steps: "cached", "run" or "resume".
    """
    if state == "cached":
        return "nothing changed"
    if not previous:
        return "first run" if state == "run" else "interrupted"
    if step.id not in previous:
        return "step is new"
    found = changes(step, previous[step.id], states)
    if not found:
        return "interrupted" if state == "resume" else "no result in the store"
    shown = ", ".join(found[:_SHOWN])
    return shown + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def changes(step: PlannedStep, before: Mapping[str, Any], states: Mapping[str, str]) -> list[str]:
    """Return all differences between a step's key inputs and those `before`, the most direct causes first."""
    now = step.key_inputs
    if before.get("kind") != now["kind"]:
        return [f"the step was `{before.get('kind')}`"]
    found = _values((), before.get("params", {}), now["params"])
    for parameter, new in now["data"].items():
        found += _data(step.data.get(parameter, parameter), before.get("data", {}).get(parameter), new)
    for parameter, new in now["inputs"].items():
        if before.get("inputs", {}).get(parameter) != new:
            id = step.inputs.get(parameter, parameter)
            if id == "model":
                found.append("model changed")
            elif states.get(id) in ("run", "resume"):
                found.append(f"input step `{id}` runs again")
            else:
                found.append(f"input step `{id}` changed")
    if before.get("seed") != now["seed"]:
        found.append("seed changed")
    if before.get("kind_version") != now["kind_version"]:
        found.append(f"`{now['kind']}` itself changed, version {before.get('kind_version')} → {now['kind_version']}")
    old = before.get("environment", {})
    for name, value in now["environment"].items():
        if old.get(name) != value:
            found.append(f"{name} {old.get(name, 'unknown')} → {value}")
    return found


def _data(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    if before is None or before.get("digest") != now["digest"]:
        return [f"data `{name}` changed"]
    return [f"{change} in data `{name}`" for change in _values((), before, now)]


def _values(path: tuple[str, ...], before: Any, now: Any) -> list[str]:
    """Return changes as phrases: "`bits` changed 4 → 3".

    Mappings are compared key by key, and their values are named by a dotted path.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            change
            for key in sorted({*before, *now})
            for change in _values((*path, key), before.get(key, _ABSENT), now.get(key, _ABSENT))
        ]
    if before == now and type(before) is type(now):
        return []
    name = ".".join(path)
    if before is _ABSENT:
        return [f"`{name}` is new"]
    if now is _ABSENT:
        return [f"`{name}` is gone"]
    if _plain(before) and _plain(now):
        return [f"`{name}` changed {_show(before)} → {_show(now)}"]
    return [f"`{name}` changed"]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
