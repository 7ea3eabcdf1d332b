"""Reads YAML text into a tree with places, and writes plain values as YAML text that reads back the same.

PyYAML scans and composes; what a scalar means is decided here, by YAML 1.2's core schema. Anchors and aliases may be
used, within bounds; tags that construct objects are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from runner.errors import DECEPTIVE, Diagnostic, RecipeError, Span
from runner.recipe.syntax import explain, scalars
from runner.recipe.syntax.nodes import Node, Scalar

MAX_DEPTH = 60
MAX_VALUES = 20_000

_BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_PLAIN = "plain"
_CORE = "tag:yaml.org,2002:"
_COLLECTIONS = {_CORE + "map": yaml.MappingNode, _CORE + "seq": yaml.SequenceNode}
_SCALARS: dict[str, tuple[type, ...]] = {
    _CORE + "int": (int,),
    _CORE + "float": (int, float),
    _CORE + "bool": (bool,),
    _CORE + "null": (type(None),),
}


class _TooDeep(Exception):
    def __init__(self, mark: yaml.Mark) -> None:
        super().__init__()
        self.mark = mark


class _Loader(yaml.BaseLoader):
    """Composer of nodes: unquoted scalars without a tag get the tag "plain"; refuses too deep nesting."""

    depth = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]  # PyYAML's

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _TooDeep(self.peek_event().start_mark)  # type: ignore[no-untyped-call]  # PyYAML's
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def decode(data: bytes, file: str) -> str:
    """Return the text of a recipe file. Raises RecipeError (R102) where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        lines = _BREAK.split(before)
        rest = _BREAK.split(data[error.start : error.start + 200].decode("utf-8", "replace"))[0]
        column = len(lines[-1])
        span = Span(file, len(lines), column + 1, 1, excerpt(lines[-1] + rest, column))
        message = f"the file is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise RecipeError([Diagnostic("R102", message, "save the file with UTF-8 encoding", span)]) from None


def excerpt(line: str, column: int) -> str:
    """Return a line for a complaint: long lines cut, tabs as one visible character, nothing unprintable."""
    if column > 200:
        return ""
    line = line if len(line) <= column + 100 else line[: column + 100] + "…"
    return "".join(c if c.isprintable() else "→" if c == "\t" else "\ufffd" for c in line)


def parse(text: str, file: str) -> Node:
    """Return the tree of `text`. Raises RecipeError with every complaint of syntax (R103 to R113)."""
    reader = _Reader(text.removeprefix("\ufeff"), file)
    node = reader.read()
    if reader.complaints:
        raise RecipeError(sorted(reader.complaints, key=_position))
    return node


def _position(complaint: Diagnostic) -> tuple[int, int]:
    return (complaint.span.line, complaint.span.column) if complaint.span else (0, 0)


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.content = text
        self.file = file
        self.lines = _BREAK.split(text)
        self.complaints: list[Diagnostic] = []
        self.extents: dict[int, tuple[int, int]] = {}
        self.open: set[int] = set()

    def read(self) -> Node:
        root = self._compose()
        if root is None:
            help = "`runner new` writes a recipe to start from"
            raise self._error("R103", "the recipe is empty", self._at(0, 0), help)
        values, depth = self._extent(root)
        if values > MAX_VALUES:
            message = f"aliases expand to more than {MAX_VALUES} values"
            raise self._error("R110", message, self._span(root), "write the values out, or use params")
        if depth > MAX_DEPTH:
            raise self._error("R113", f"aliases nest values more than {MAX_DEPTH} deep", self._span(root))
        if self.complaints:
            raise RecipeError(self.complaints)
        node = self._node(root)
        if not isinstance(node.value, dict):
            found = "a list" if isinstance(node.value, tuple) else "a single value"
            message = f"a recipe is a mapping of keys to values; this is {found}"
            raise self._error("R108", message, node.span, "begin with `version: 1` and `name: ...`")
        return node

    def _compose(self) -> yaml.Node | None:
        try:
            return _Loader(self.content).get_single_node()
        except _TooDeep as error:
            message = f"values are nested more than {MAX_DEPTH} deep"
            raise self._error("R113", message, self._at(error.mark.line, error.mark.column)) from None
        except yaml.reader.ReaderError as error:
            before = _BREAK.split(self.content[: error.position])
            place = self._at(len(before) - 1, len(before[-1]))
            message = f"the character U+{ord(self.content[error.position]):04X} is not allowed in YAML"
            raise self._error("R104", message, place, "remove it") from None
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error) from None

    def _syntax(self, error: yaml.MarkedYAMLError) -> RecipeError:
        mark = error.problem_mark or error.context_mark
        span = self._at(mark.line, mark.column) if mark else self._at(0, 0)
        problem = error.problem or "not understood"
        if problem == "but found another document":
            return self._error("R106", "a recipe is one document; a second one begins here", span, "remove the `---`")
        if "'\\t'" in problem:
            return self._error(
                "R105", "a tab is used for indentation; YAML takes only spaces", span, "replace each tab by two spaces"
            )
        if "undefined alias" in problem:
            name = problem.split("'")[1]
            return self._error("R104", f"the alias `*{name}` has no anchor `&{name}` before it", span)
        begun = (error.context_mark.line, error.context_mark.column) if error.context_mark else None
        found = explain.explain(self.lines, problem, (span.line - 1, span.column - 1), begun)
        if found is not None:
            place = self._at(found.line, found.column, found.length)
            return self._error("R104", f"not valid YAML: {found.message}", place, found.help)
        help = None
        if "'{'" in problem and span.text[: span.column - 1].endswith("$"):
            help = 'inside braces and brackets put references in quotes: `"${name}"`'
        elif problem.startswith("mapping values are not allowed"):
            help = "check the indentation, and put text that holds `: ` in quotes"
        elif "cannot start any token" in problem:
            help = "put text that begins with this character in quotes"
        elif (
            begun is not None
            and error.context_mark is not None
            and explain.is_never_closed(problem, begun, (span.line - 1, span.column - 1))
        ):
            opened = self._at(error.context_mark.line, error.context_mark.column)
            sign = opened.text[opened.column - 1 : opened.column]
            return self._error("R104", f"not valid YAML: this `{sign}` is never closed", opened)
        return self._error("R104", f"not valid YAML: {problem}", span, help)

    def _odd(self, node: yaml.ScalarNode, noun: str) -> None:
        if node.tag == _PLAIN and (odd := explain.odd_text(str(node.value), noun)) is not None:
            self._complain("R104", f"{odd[1]} is part of this {noun}", node, odd[2])

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        """Return how many values `node` stands for, and how deep they are nested, with every alias expanded.

        Complains of an alias inside itself. Each node is counted once, so the cost is linear in the text.
        """
        if id(node) in self.extents:
            return self.extents[id(node)]
        if id(node) in self.open:
            self._complain("R110", "an alias refers to the value that it is part of", node)
            return 1, 1
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        self.open.add(id(node))
        extents = [self._extent(child) for child in children]
        self.open.remove(id(node))
        extent = (1 + sum(values for values, _ in extents), 1 + max((depth for _, depth in extents), default=0))
        self.extents[id(node)] = extent
        return extent

    def _node(self, node: yaml.Node) -> Node:
        span = self._span(node)
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node), span)
        if node.tag not in _COLLECTIONS or not isinstance(node, _COLLECTIONS[node.tag]):
            self._tag(node)
        if isinstance(node, yaml.SequenceNode):
            return Node(tuple(self._node(item) for item in node.value), span)
        entries: dict[str, Node] = {}
        keys: dict[str, Span] = {}
        for key, value in node.value:
            place = self._span(key)
            if not isinstance(key, yaml.ScalarNode):
                self._complain("R112", "a key must be text; this one is a list or a mapping", key)
                continue
            if key.tag not in (_PLAIN, _CORE + "str"):
                self._tag(key)
            self._plain_characters(key)
            self._odd(key, "key")
            if key.value in entries:
                first = keys[key.value]
                message = f"`{key.value}` is written twice; first at line {first.line}"
                self._complain("R107", message, key, "keep one of them")
                continue
            keys[key.value] = place
            entries[key.value] = self._node(value)
        return Node(entries, span, keys)

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        text = str(node.value)
        self._plain_characters(node)
        self._odd(node, "value")
        if node.tag == _CORE + "str":
            return text
        if node.tag != _PLAIN and node.tag not in _SCALARS:
            self._tag(node)
            return None
        try:
            value = scalars.read(text)
        except scalars.NumberError as error:
            self._complain("R111", str(error), node, "put it in quotes if it is text")
            return None
        if node.tag in _SCALARS and type(value) not in _SCALARS[node.tag]:
            name = node.tag.removeprefix(_CORE)
            self._complain("R109", f"`{text}` does not match its tag `!!{name}`", node, "leave the tag out")
        return value

    def _plain_characters(self, node: yaml.ScalarNode) -> None:
        """Complain about control characters, also escaped ones: they could act on the reader's terminal."""
        found = DECEPTIVE.search(str(node.value))
        if found is not None:
            message = f"the character U+{ord(found[0]):04X} is not allowed in a recipe, also not as an escape"
            self._complain("R104", message, node, "remove it: it steers a terminal, or reorders what a reader sees")

    def _tag(self, node: yaml.Node) -> None:
        tag = "!!" + node.tag.removeprefix(_CORE) if node.tag.startswith(_CORE) else node.tag
        self._complain("R109", f"the tag `{tag}` is not allowed; a recipe holds plain data", node, "leave the tag out")

    def _complain(self, code: str, message: str, node: yaml.Node, help: str | None = None) -> None:
        self.complaints.append(Diagnostic(code, message, help, self._span(node)))

    def _error(self, code: str, message: str, span: Span, help: str | None = None) -> RecipeError:
        return RecipeError([Diagnostic(code, message, help, span)])

    def _at(self, line: int, column: int, length: int = 1) -> Span:
        text = self.lines[line] if line < len(self.lines) else ""
        return Span(self.file, line + 1, column + 1, max(1, length), excerpt(text, column))

    def _span(self, node: yaml.Node) -> Span:
        start, end = node.start_mark, node.end_mark
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        length = (end.column if end.line == start.line else len(line)) - start.column
        if not isinstance(node, yaml.ScalarNode):
            length = 1  # the caret of a collection marks its beginning
        return self._at(start.line, start.column, length)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        quoted = not isinstance(scalars.read(text), str)
    except scalars.NumberError:
        quoted = True
    odd = (
        text.startswith(explain.QUOTES) or not text.replace("\n", "").isprintable()
    )  # PyYAML folds odd line breaks away unless they are escaped
    return dumper.represent_scalar(_CORE + "str", text, style='"' if quoted or odd else None)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar(_CORE + "float", repr(value))


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)


def dump(document: Mapping[str, Any], *, inline: bool = True) -> str:
    """Return YAML of plain data, which `parse` reads back to equal values of equal types.

    Equal data gives equal text. With `inline` False every value is on a line of its own.
    """
    return yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, default_flow_style=None if inline else False,
        allow_unicode=True, width=110 if inline else 1_000_000,
    )  # fmt: skip


def scalar(value: Scalar) -> str:
    """Return a single value as YAML on one line, which `parse` reads back."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    dumped = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=False, default_style=style, allow_unicode=True, width=1_000_000
    )
    return str(dumped)[2:].removesuffix("\n")
