"""Complaints about params and data entries that a recipe defines and does not use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.errors import Diagnostic
from runner.recipe.compose import params
from runner.recipe.syntax.nodes import Node, walk

_NO_REFERENCES = ("params", "matrix", "version", "extends")
_SPACE = ("search", "space")  # its values are written out, its conditions name params


def unused_sets(root: Node, sets: Sequence[str]) -> list[Diagnostic]:
    """Return complaints (R228) about `--set` of a param that nothing refers to."""
    written = root.entries.get("params")
    defined, used = (written.entries if written is not None else {}), used_params(root)
    return [
        Diagnostic("R228", f"`--set {given}` changes nothing: the recipe nowhere refers to `${{{name}}}`",
                   f"leave it out, or write `${{{name}}}` where the value belongs", written.keys.get(name))
        for given in sets if (name := given.partition("=")[0]) in defined and name not in used and written is not None
    ]  # fmt: skip


def warnings(root: Node, file: str) -> list[Diagnostic]:
    """Return warnings (R229) about unused params and data entries of `file` itself, not of a parent."""
    texts = set(_step_texts(root))
    sections = [("params", "param", used_params(root))]
    if not any("${" in text for text in texts):  # else a param may be the name of a data entry
        sections.append(("data", "data entry", texts))
    return [
        Diagnostic("R229", f"the {noun} `{name}` is not used", "leave it out", place, severity="warning")
        for section, noun, used in sections
        for name, place in (root.entries[section].keys if section in root.entries else {}).items()
        if place.file == file and name not in used
    ]


def used_params(root: Node) -> set[str]:
    """Return the params that values refer to, directly or through other params, and that `when` names."""
    written = root.entries.get("params")
    defined = written.entries if written is not None else {}
    open = set()
    for path, node in walk(root):
        if isinstance(node.value, str) and path[0] not in _NO_REFERENCES:
            condition = len(path) > 2 and path[-1] == "when" and (path[0] == "steps" or path[:2] == _SPACE)
            open |= set((params.NAME.findall if condition else _references)(node.value))
    used: set[str] = set()
    while open:
        name = open.pop()
        if name in defined and name not in used:
            used.add(name)
            text = defined[name].text
            open |= set(_references(text)) if text is not None else set()
    return used


def _references(text: str) -> list[str]:
    return [match[1] for match in params.TOKEN.finditer(text) if match[1] is not None]


def _step_texts(root: Node) -> Iterator[str]:
    """Yield every text among the parameters of steps."""
    listed = root.entries.get("steps")
    for step in listed.items if listed is not None else ():
        yield from (node.value for _, node in walk(step) if isinstance(node.value, str))
