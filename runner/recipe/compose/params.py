"""Params: their defaults, `--set`, and `${name}` references to them.

A value that is exactly one `${name}` has the param's type; inside other text the param is inserted as text; `$${`
stands for `${` itself. Inserted values are not searched for references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner import wording
from runner.errors import DECEPTIVE, Diagnostic, Span
from runner.recipe.syntax import scalars
from runner.recipe.syntax.nodes import Node, Scalar, walk
from runner.recipe.types import Path

Value = bool | int | float | str
LONGEST = 10_000  # characters of a text with references filled in
LARGEST = 2**20  # characters of all such texts of a recipe
Report = Callable[[Diagnostic], None]

TOKEN = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPED = "use `$${` for the text `${`"
WANTED: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


@dataclass(frozen=True)
class Params:
    """The params of a recipe. `values` has those that could be resolved; `names` has all, for did-you-mean."""

    values: Mapping[str, Value]
    names: tuple[str, ...]


def escape(text: str) -> str:
    """Return `text` with `${` escaped, so that it contains no references."""
    return text.replace("${", "$${")


def escaped(value: Any) -> Any:
    """Return plain data with every text in it escaped."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mapping):
        return {key: escaped(entry) for key, entry in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


def resolve(
    root: Node, sets: Sequence[str], chosen: Mapping[str, Value] | None = None
) -> tuple[Params, list[Diagnostic]]:
    """Return the params of `root` with `sets` applied, and complaints about them.

    `sets` are "name=value", of which the last of a name counts; `chosen` are the values of a combination of `matrix`.
    """
    written = root.entries.get("params")
    nodes = written.entries if written is not None else {}
    complaints: list[Diagnostic] = []
    defaults = _Resolver(nodes, {}, complaints.append).all()
    given = {**(chosen or {}), **_given(sets, nodes, defaults, complaints.append)}
    values = _Resolver(nodes, given, lambda complaint: None).all() if given else defaults
    return Params(values, tuple(nodes)), complaints


class _Resolver:
    """Resolver of params that refer to one another, each resolved once."""

    def __init__(self, nodes: Mapping[str, Node], given: Mapping[str, Value], report: Report) -> None:
        self.nodes = nodes
        self.given = given
        self.report = report
        self.done: dict[str, Value | None] = {}
        self.open: list[str] = []

    def all(self) -> dict[str, Value]:
        values = {name: self.value(name) for name in self.nodes}
        return {name: value for name, value in values.items() if value is not None}

    def value(self, name: str) -> Value | None:
        """Return the value of a param; None where it cannot be resolved, which has been reported."""
        if name in self.given:
            return self.given[name]
        if name in self.done:
            return self.done[name]
        if name in self.open:
            circle = " → ".join(f"`{step}`" for step in [*self.open[self.open.index(name) :], name])
            message = f"params refer to one another in a circle: {circle}"
            self.report(Diagnostic("R222", message, "give one of them a value", self.nodes[name].span))
            return None
        self.open.append(name)
        node = self.nodes[name]
        value = node.value
        if isinstance(value, str):
            value = fill(value, node.span, self.nodes, self.value, self.report)
        self.open.pop()
        self.done[name] = value if isinstance(value, bool | int | float | str) else None
        return self.done[name]


def known(names: Collection[str]) -> str:
    return f"params of this recipe: {wording.ticked(names)}" if names else "this recipe has no `params`"


def _given(
    sets: Sequence[str],
    nodes: Mapping[str, Node],
    defaults: Mapping[str, Value],
    report: Report,
) -> dict[str, Value]:
    given: dict[str, Value] = {}
    for written in sets:
        name, equals, text = written.partition("=")
        if not equals or not name:
            report(Diagnostic("R225", f"`--set {written}` is not of the form name=value", "write `--set name=value`"))
        elif name not in nodes:
            message = f"`--set {written}` names no param of the recipe{wording.did_you_mean(name, nodes)}"
            report(Diagnostic("R223", message, known(nodes)))
        elif name in defaults:
            value = _as_type_of(defaults[name], text)
            if value is None:
                wanted = WANTED[type(defaults[name])]
                default = wording.show(defaults[name])
                message = f"`{name}` must be {wanted}, as its default {default} is; got `--set {name}={text}`"
                report(Diagnostic("R224", message, span=nodes[name].span))
            elif isinstance(value, str) and (odd := DECEPTIVE.search(value)) is not None:
                message = f"`--set {name}=…` holds the character U+{ord(odd[0]):04X}, which no recipe may"
                report(Diagnostic("R224", message, "remove it", nodes[name].span))
            else:
                given[name] = value
    return given


def _as_type_of(default: Value, text: str) -> Value | None:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return text in scalars.TRUE if text in scalars.TRUE | scalars.FALSE else None
    try:
        number = scalars.read_number(text)
    except scalars.NumberError:
        return None
    if isinstance(default, int):
        return number if isinstance(number, int) else None
    return float(number) if number is not None else None


def substitute(root: Node, params: Params, skip: Callable[[Path], bool], report: Report, path: Path = ()) -> Node:
    """Return the tree with every reference replaced by its value, except at the paths to `skip`."""
    if skip(path):
        return root
    if isinstance(root.value, dict):
        return replace(
            root,
            value={name: substitute(node, params, skip, report, (*path, name)) for name, node in root.value.items()},
        )
    if isinstance(root.value, tuple):
        return replace(
            root, value=tuple(substitute(n, params, skip, report, (*path, i)) for i, n in enumerate(root.value))
        )
    if not isinstance(root.value, str) or "${" not in root.value:
        return root
    value = fill(root.value, root.span, params.names, params.values.get, report)
    return replace(root, value=value, reference=root.value, broken=value is None)


def fill(
    text: str,
    span: Span,
    names: Sequence[str] | Mapping[str, Any],
    value_of: Callable[[str], Value | None],
    report: Report,
) -> Scalar:
    """Return `text` with its references replaced; None where one of them has no value."""
    only = TOKEN.fullmatch(text)
    if only is not None and only[1] is not None:
        return _referred(only[0], only[1], span, names, value_of, report)
    parts: list[str] = []
    end = 0
    broken = False
    for match in TOKEN.finditer(text):
        parts.append(text[end : match.start()])
        end = match.end()
        if match[0] == "$${":
            parts.append("${")
            continue
        value = _referred(match[0], match[1], span, names, value_of, report)
        broken = broken or value is None
        parts.append(as_text(value))
        if sum(map(len, parts)) > LONGEST:
            message = f"with its references filled in this text has more than {LONGEST} characters"
            report(Diagnostic("R227", message, "write the text out, or refer to less", span))
            return None
    parts.append(text[end:])
    return None if broken else "".join(parts)


def check_size(root: Node, report: Report) -> None:
    """Report texts that together are longer than a recipe can hold once references are replaced."""
    filled = [node for _, node in walk(root) if node.reference is not None and isinstance(node.value, str)]
    if (size := sum(len(str(node.value)) for node in filled)) > LARGEST:
        message = (
            f"with their references filled in the texts of the recipe have {size} characters; {LARGEST} are the most"
        )
        report(Diagnostic("R227", message, "refer to params that are shorter", filled[0].span))


def as_text(value: Scalar) -> str:
    """Return a param's value as it is inserted into other text, as YAML would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _referred(
    written: str,
    name: str | None,
    span: Span,
    names: Sequence[str] | Mapping[str, Any],
    value_of: Callable[[str], Value | None],
    report: Report,
) -> Value | None:
    if name is None:
        report(Diagnostic("R221", "`${` is never closed; a reference is `${name}`", _ESCAPED, inside(span, written)))
    elif not NAME.fullmatch(name):
        message = f"`{written}` is malformed; a reference is `${{name}}`"
        report(Diagnostic("R221", message, _ESCAPED, inside(span, written)))
    elif name not in names:
        message = f"`{written}` is not a param{wording.did_you_mean(name, names)}"
        report(Diagnostic("R220", message, known(names), inside(span, written)))
    else:
        return value_of(name)
    return None


def inside(span: Span, written: str) -> Span:
    """Return the place of `written` inside the text at `span`, where it is on the same line."""
    at = span.text.find(written, span.column - 1)
    return replace(span, column=at + 1, length=len(written)) if at >= 0 else span
