"""The tree of a recipe's text: plain values, each with its place in the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runner.errors import Span
from runner.recipe.types import Path

Scalar = None | bool | int | float | str


@dataclass(frozen=True)
class Node:
    """A value and its place.

    `value` is a scalar, a tuple of nodes (a list) or a dict of nodes (a mapping, in the order written). `keys` are the
    places of a mapping's keys. `reference` is the text, such as `${bits}`, that a substituted value was written as.
    `broken` marks a value that is already reported, so that later checks skip it.
    """

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    span: Span
    keys: Mapping[str, Span] = field(default_factory=dict)
    reference: str | None = None
    broken: bool = False

    @property
    def entries(self) -> dict[str, Node]:
        """The entries of a mapping; none for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> tuple[Node, ...]:
        """The entries of a list; none for anything else."""
        return self.value if isinstance(self.value, tuple) else ()

    @property
    def text(self) -> str | None:
        return self.value if isinstance(self.value, str) else None

    def with_entries(self, entries: dict[str, Node], keys: Mapping[str, Span] | None = None) -> Node:
        """Return the same mapping with other entries; places of remaining keys do not change."""
        known = {**self.keys, **(keys or {})}
        return replace(self, value=entries, keys={k: known[k] for k in entries if k in known})


def plain(node: Node) -> Any:
    """Return the value without places, as JSON has it."""
    if isinstance(node.value, dict):
        return {key: plain(entry) for key, entry in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    return node.value


def find(node: Node, path: Path) -> Node | None:
    """Return the node at `path`, or None."""
    for part in path:
        if isinstance(node.value, dict) and part in node.value:
            node = node.value[str(part)]
        elif isinstance(node.value, tuple) and isinstance(part, int) and 0 <= part < len(node.value):
            node = node.value[part]
        else:
            return None
    return node


def place(node: Node, path: Path) -> Span:
    """Return the place to show for the value at `path`.

    It is that of a scalar itself, of the key of a collection, else of the enclosing value.
    """
    best = node.span
    for part in path:
        if isinstance(node.value, dict) and part in node.value:
            key = node.keys.get(str(part))
            node = node.value[str(part)]
            best = key if key is not None and isinstance(node.value, dict | tuple) else node.span
        elif isinstance(node.value, tuple) and isinstance(part, int) and 0 <= part < len(node.value):
            node = node.value[part]
            best = node.span
        else:
            break
    return best


def key_place(node: Node, path: Path) -> Span:
    """Return the place of the key of the value at `path`, where it has one."""
    parent = find(node, path[:-1]) if path else None
    key = parent.keys.get(str(path[-1])) if parent is not None else None
    return key if key is not None else place(node, path)


def places(node: Node, path: Path = ()) -> dict[Path, Span]:
    """Return `place` for every path of the tree."""
    return dict(_places(node, path, node.span))


def _places(node: Node, path: Path, span: Span) -> Iterator[tuple[Path, Span]]:
    yield path, span
    if isinstance(node.value, dict):
        for key, entry in node.value.items():
            compound = isinstance(entry.value, dict | tuple)
            yield from _places(entry, (*path, key), node.keys.get(key, entry.span) if compound else entry.span)
    elif isinstance(node.value, tuple):
        for index, item in enumerate(node.value):
            yield from _places(item, (*path, index), item.span)


def walk(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Yield every node of the tree with its path, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for key, entry in node.value.items():
            yield from walk(entry, (*path, key))
    elif isinstance(node.value, tuple):
        for index, item in enumerate(node.value):
            yield from walk(item, (*path, index))
