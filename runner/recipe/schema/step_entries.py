"""The entries of `steps` before they are checked: which key is the kind, and which id a step has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from runner.recipe.schema import kinds as discovery
from runner.recipe.schema import load
from runner.recipe.syntax.nodes import Node

RESERVED = "model"
ANCHORS = ("before", "after")
PLACING = ("remove", *ANCHORS)  # keys of a step that only a child has
ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def sibling_keys() -> tuple[str, ...]:
    """Return the keys of a step other than its kind."""
    return tuple(load.step_schema()["properties"])


def other_keys(step: Node) -> list[str]:
    """Return the keys of a step that are not sibling keys, of which one should be its kind."""
    known = sibling_keys()
    return [key for key in step.entries if key not in known]


def kind_keys(step: Node) -> list[str]:
    """Return the keys of a step that name a kind; where none does, those that look like one."""
    others = other_keys(step)
    kinds = [key for key in others if discovery.find(key) is not None]
    return kinds or [key for key in others if "." in key] or (others if len(others) == 1 else [])


def id_of(step: Node) -> str | None:
    node = step.entries.get("id")
    return node.text if node is not None else None


def with_default_ids(root: Node) -> Node:
    """Return the tree with a default id in every step without one: the method, then method-2, method-3 ..."""
    listed = root.entries.get("steps")
    if listed is None or not listed.items:
        return root
    taken = {RESERVED, *(id for step in listed.items if (id := id_of(step)) is not None)}
    entries: list[Node] = []
    for step in listed.items:
        kinds = kind_keys(step)
        if "id" not in step.entries and len(kinds) == 1:
            method = kinds[0].rpartition(".")[2]
            if ID.fullmatch(method):
                id = _free(method, taken)
                taken.add(id)
                step = replace(step, value={**step.entries, "id": Node(id, step.span)})
        entries.append(step)
    return replace(root, value={**root.entries, "steps": replace(listed, value=tuple(entries))})


def _free(method: str, taken: Iterable[str]) -> str:
    id, count = method, 1
    while id in taken:
        count += 1
        id = f"{method}-{count}"
    return id
