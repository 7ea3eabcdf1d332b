"""Merges a child recipe into its parent.

`params`, `model`, `data` and its entries, and `resources` merge key by key. A step of the child with the id of a step
of the parent changes that one in place: parameters key by key where the kind is the same or not written, the kind and
all its parameters where it differs. `remove: true` removes the parent's step of that id. Other steps of the
child are put before or after the step that `before` or `after` names, else at the end; a changed step that has one of
them moves there.
"""

from __future__ import annotations

from dataclasses import replace

from runner import wording
from runner.errors import Diagnostic, RecipeError, Span
from runner.recipe.schema import step_entries
from runner.recipe.syntax.nodes import Node

_MERGED_WITHIN = {"model": 1, "data": 2, "params": 1}


def merged(parent: Node, child: Node, removed: dict[str, Span] | None = None) -> Node:
    """Return the tree of `child` merged into that of `parent`.

    Steps that the child removes are added to `removed`, with the place of the removal. Raises RecipeError with every
    conflict.
    """
    complaints: list[Diagnostic] = []
    entries = {name: node for name, node in parent.entries.items() if name != "extends"}
    for name, node in child.entries.items():
        if name == "extends":
            continue
        if name == "steps":
            steps = _Steps(entries.get(name, replace(node, value=())), node, complaints)
            entries[name] = steps.merged()
            (removed if removed is not None else {}).update(steps.removed)
        elif name in entries:
            if name == "params":
                complaints += _changed_types(entries[name], node)
            entries[name] = _overlaid(entries[name], node, _MERGED_WITHIN.get(name, 0))
        else:
            entries[name] = node
    if complaints:
        raise RecipeError(complaints)
    return child.with_entries(entries, {**parent.keys, **child.keys})


def where(span: Span) -> str:
    """Return a place as messages show it: file:line:column."""
    return f"{span.file}:{span.line}:{span.column}"


def unplaced(root: Node) -> list[Diagnostic]:
    """Return complaints about `remove`, `before` and `after` in a recipe that extends nothing."""
    listed = root.entries.get("steps")
    return [
        Diagnostic("R127", f"`{key}` places a step among those of a parent; this recipe extends none",
                   "leave it out, or add `extends`", step.keys[key])
        for step in (listed.items if listed is not None else ()) for key in step_entries.PLACING if key in step.entries
    ]  # fmt: skip


def _overlaid(base: Node, over: Node, levels: int) -> Node:
    """Return `base` with the entries of `over`; mappings inside merge down to `levels`, everything else is replaced."""
    if levels == 0 or not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    entries = dict(base.value)
    for name, node in over.value.items():
        entries[name] = _overlaid(entries[name], node, levels - 1) if name in entries else node
    return over.with_entries(entries, {**base.keys, **over.keys})


def _changed_types(parent: Node, child: Node) -> list[Diagnostic]:
    """Return complaints about params whose type the child changes, to which the parent's references no longer fit."""
    found = []
    for name, node in child.entries.items():
        before = parent.entries.get(name)
        old, new = (_family(before.value) if before is not None else None), _family(node.value)
        if before is not None and old and new and old != new and not _refers(before) and not _refers(node):
            message = f"the param `{name}` is {new} here, and {old} in the parent, at {where(before.span)}"
            found.append(Diagnostic("R128", message, "give it a value of that type, or another name", node.span))
    return found


def _family(value: object) -> str | None:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else "text" if isinstance(value, str) else None


def _refers(node: Node) -> bool:
    return isinstance(node.value, str) and "${" in node.value


class _Steps:
    """The steps of a parent while those of its child are merged into them, in the order written."""

    def __init__(self, parent: Node, child: Node, complaints: list[Diagnostic]) -> None:
        self.parent, self.child, self.complaints = parent, child, complaints
        self.list: list[Node] = list(parent.items)
        self.removed: dict[str, Span] = {}
        self.last: dict[tuple[str, str], str] = {}  # step, side → the step that was last inserted there

    def merged(self) -> Node:
        if not isinstance(self.parent.value, tuple) or not isinstance(self.child.value, tuple):
            return self.child
        written: dict[str, Span] = {}
        for step in self.child.items:
            id = step_entries.id_of(step)
            if id is not None and id in written:
                message = f"the step `{id}` is changed twice; first at {where(written[id])}"
                self.complain("R128", message, "write its changes in one place", _place(step, "id"))
                continue
            if id is not None:
                written[id] = step.span
            self.merge(step, id)
        return replace(self.child, value=tuple(self.list))

    def merge(self, step: Node, id: str | None) -> None:
        if "remove" in step.entries:
            self.remove(step, id)
            return
        index = self.index(id)
        bare = step.with_entries(
            {name: node for name, node in step.entries.items() if name not in step_entries.PLACING}
        )
        merged = bare if index is None else _merged_step(self.list[index], bare)
        anchors = [name for name in step_entries.ANCHORS if name in step.entries]
        if len(anchors) > 1:
            message = f"a step goes to one place; this one has `before` and `after`, at {where(step.keys['before'])}"
            self.complain("R128", message, "keep one of them", step.keys["after"])
        elif anchors:
            self.put(step, id, merged, anchors[0])
        elif index is not None:
            self.list[index] = merged
        else:
            self.list.append(merged)

    def remove(self, step: Node, id: str | None) -> None:
        flag = step.entries["remove"]
        others = [name for name in step.entries if name not in ("id", "remove")]
        if flag.value is not True:
            self.complain("R127", f"`remove` must be true; got {wording.show(flag.value)}", "leave it out", flag.span)
        elif id is None:
            message = "`remove` needs the `id` of the parent's step"
            self.complain("R127", message, self.known(), step.keys["remove"])
        elif others:
            message = f"a step that is removed cannot be changed too; this one has {wording.ticked(others)}"
            self.complain("R128", message, f"keep `id: {id}` and `remove: true` alone", step.keys[others[0]])
        elif (index := self.index(id)) is None:
            self.unknown("remove", id, _place(step, "id"))
        else:
            self.list.pop(index)
            self.removed[id] = step.span

    def put(self, step: Node, id: str | None, merged: Node, side: str) -> None:
        anchor = step.entries[side]
        if anchor.text is None:
            message = f"`{side}` must be the id of a step; got {wording.show(anchor.value)}"
            self.complain("R127", message, self.known(), anchor.span)
            return
        if anchor.text == id:
            self.complain("R127", f"`{side}` names the step itself", self.known(), anchor.span)
            return
        if (index := self.index(id)) is not None:
            self.list.pop(index)
        # Several steps after the same one stand in the order in which they are written.
        near = self.last.get((anchor.text, side), anchor.text) if side == "after" else anchor.text
        at = self.index(near)
        if at is None:
            self.unknown(side, anchor.text, anchor.span)
            return
        self.list.insert(at + (side == "after"), merged)
        if id is not None:
            self.last[anchor.text, side] = id

    def index(self, id: str | None) -> int | None:
        return next(
            (at for at, step in enumerate(self.list) if id is not None and step_entries.id_of(step) == id), None
        )

    def known(self) -> str:
        ids = [id for step in self.list if (id := step_entries.id_of(step)) is not None]
        return f"there are {wording.ticked(ids)}" if ids else "the parent has no steps"

    def unknown(self, key: str, id: str, span: Span) -> None:
        if id in self.removed:
            message = f"`{key}` names `{id}`, which is removed at {where(self.removed[id])}"
            self.complain("R128", message, "leave one of the two out", span)
            return
        ids = [known for step in self.list if (known := step_entries.id_of(step)) is not None]
        message = f"`{key}` names `{id}`, which is no step of {self.parent.span.file}{wording.did_you_mean(id, ids)}"
        self.complain("R127", message, self.known(), span)

    def complain(self, code: str, message: str, help: str | None, span: Span) -> None:
        self.complaints.append(Diagnostic(code, message, help, span))


def _place(step: Node, key: str) -> Span:
    node = step.entries.get(key)
    return node.span if node is not None else step.span


def _merged_step(parent: Node, child: Node) -> Node:
    kinds = step_entries.kind_keys(parent)
    other = [name for name in step_entries.kind_keys(child) if name not in kinds]
    entries = {name: node for name, node in parent.entries.items() if not (other and name in kinds)}
    for name, node in child.entries.items():
        within = 1 if name in kinds or name == "resources" else 0
        unchanged = name in entries and node.value is None and name in kinds
        if not unchanged:
            entries[name] = _overlaid(entries[name], node, within) if name in entries else node
    span = child.span if other or not kinds else parent.span
    return replace(parent.with_entries(entries, {**parent.keys, **child.keys}), span=span)
