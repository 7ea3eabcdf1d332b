"""The account of tensors as text: what becomes of the tensors of a step's input, by role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.planned_account import FATES
from runner.progress import units


def line(account: Mapping[str, Any]) -> str:
    """Return one line: `42 changed (q, k, v, o; 8.6 MB), 14 kept (norm, embedding; 4.2 MB), 1 tied (head)`."""
    parts = []
    for fate in FATES:
        roles = {role: fates[fate] for role, fates in _roles(account).items() if fate in fates}
        if roles:
            size = sum(entry["bytes"] for entry in roles.values())
            named = ", ".join(roles) + (f"; {units.size(size)}" if size else "")
            parts.append(f"{sum(entry['tensors'] for entry in roles.values())} {fate} ({named})")
    return ", ".join(parts)


def rows(account: Mapping[str, Any]) -> list[list[str]]:
    """Return a table, its head first: a row for each role, a column for each fate that occurs."""
    roles = _roles(account)
    fates = [fate for fate in FATES if any(fate in held for held in roles.values())]
    found = [["tensors", *fates]]
    for role, held in roles.items():
        found.append([role, *(_cell(held[fate]) if fate in held else "" for fate in fates)])
    return found


def _roles(account: Mapping[str, Any]) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    roles: Mapping[str, Mapping[str, Mapping[str, int]]] = account.get("roles") or {}
    return roles


def _cell(entry: Mapping[str, int]) -> str:
    return f"{entry['tensors']:,}" + (f", {units.size(entry['bytes'])}" if entry["bytes"] else "")
