"""`extends`: one recipe changes another key by key; steps are addressed by their ids.

`params`, `model`, `data` and its entries, and `resources` merge key by key. A step of the child with the id of a step
of the parent changes that one in place: parameters key by key where the kind is the same or not written, the kind and
its parameters as a whole where it differs. Other steps of the child are appended.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from runner.errors import Diagnostic, RecipeError, Span
from runner.recipe import steps, text
from runner.recipe.nodes import Node

_MERGED_WITHIN = {"model": 1, "data": 2, "params": 1}
_REMOTE = re.compile(r"[a-z+]+://|[\w.-]+@[\w.-]+:")


@dataclass(frozen=True)
class _Place:
    """A recipe being read: its file as shown, its real path, and where it is named by `extends`."""

    file: str
    real: str
    span: Span | None


def read_file(file: str, span: Span | None = None, code: str = "R101") -> str:
    """The text of a recipe file. Raises RecipeError where it cannot be read."""
    try:
        return text.decode(Path(file).read_bytes(), file)
    except OSError as error:
        problem = error.strerror or str(error)
        raise RecipeError([Diagnostic(code, f"cannot read `{file}`: {problem}", _similar(file), span)]) from None
    except ValueError as error:  # a null byte in the path
        raise RecipeError([Diagnostic(code, f"cannot read `{file!r}`: {error}", None, span)]) from None


def _similar(file: str) -> str | None:
    path = Path(file)
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return None
    found = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean `{path.parent / found[0]}`?" if found else None


def gather(content: str, file: str) -> Node:
    """The tree of a recipe merged with all that it extends. Raises RecipeError with every complaint of syntax."""
    return _gather(content, (_Place(file, os.path.realpath(file), None),))


def _gather(content: str, chain: tuple[_Place, ...]) -> Node:
    root = steps.identified(text.parse(content, chain[-1].file))
    named = root.entries.get("extends")
    return root if named is None else merged(_parent(named, chain), root)


def _parent(named: Node, chain: tuple[_Place, ...]) -> Node:
    path = named.text
    if path is None or not path or "${" in path or _REMOTE.match(path):
        what = "a remote place" if path and _REMOTE.match(path) else "not a path"
        help = "write the path of a recipe file, relative to this one"
        raise RecipeError([Diagnostic("R122", f"`extends` takes a local path; this is {what}", help, named.span)])
    file = os.path.normpath(os.path.join(os.path.dirname(chain[-1].file), path))
    place = _Place(file, os.path.realpath(file), named.span)
    if place.real in [earlier.real for earlier in chain]:
        links = [earlier for earlier in (*chain[1:], place) if earlier.span is not None]
        circle = " → ".join(f"{link.span.file}:{link.span.line}" for link in links if link.span is not None)
        message = f"recipes extend one another in a circle: {circle} → {file}"
        raise RecipeError([Diagnostic("R121", message, "remove one `extends`", named.span)])
    return _gather(read_file(file, named.span, "R120"), (*chain, place))


def merged(parent: Node, child: Node) -> Node:
    """The tree of `child` laid over that of `parent`."""
    entries = {name: node for name, node in parent.entries.items() if name != "extends"}
    for name, node in child.entries.items():
        if name == "extends":
            continue
        if name == "steps" and name in entries:
            entries[name] = _merged_steps(entries[name], node)
        elif name in entries:
            entries[name] = _overlaid(entries[name], node, _MERGED_WITHIN.get(name, 0))
        else:
            entries[name] = node
    return child.with_entries(entries, {**parent.keys, **child.keys})


def _overlaid(base: Node, over: Node, levels: int) -> Node:
    """`base` with the entries of `over`; mappings inside merge down to `levels`, everything else is replaced."""
    if levels == 0 or not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    entries = dict(base.value)
    for name, node in over.value.items():
        entries[name] = _overlaid(entries[name], node, levels - 1) if name in entries else node
    return over.with_entries(entries, {**base.keys, **over.keys})


def _merged_steps(parent: Node, child: Node) -> Node:
    if not isinstance(parent.value, tuple) or not isinstance(child.value, tuple):
        return child
    merged = list(parent.value)
    at = {steps.id_of(step): index for index, step in enumerate(merged) if steps.id_of(step) is not None}
    for step in child.value:
        id = steps.id_of(step)
        if id is not None and id in at:
            merged[at[id]] = _merged_step(merged[at[id]], step)
        else:
            merged.append(step)
    return replace(child, value=tuple(merged))


def _merged_step(parent: Node, child: Node) -> Node:
    kinds = steps.kind_keys(parent)
    other = [name for name in steps.kind_keys(child) if name not in kinds]
    entries = {name: node for name, node in parent.entries.items() if not (other and name in kinds)}
    for name, node in child.entries.items():
        within = 1 if name in kinds or name == "resources" else 0
        keep = name in entries and node.value is None and name in kinds
        if not keep:
            entries[name] = _overlaid(entries[name], node, within) if name in entries else node
    span = child.span if other or not kinds else parent.span
    return replace(parent.with_entries(entries, {**parent.keys, **child.keys}), span=span)
