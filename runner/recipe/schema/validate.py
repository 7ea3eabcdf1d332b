"""The schema stage: validates every value of a recipe, with complaints in plain words.

The step kind is found first and its parameters are checked against that kind's schema alone, so that a complaint is
always about one thing that was written, never about alternatives that were not taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import wording
from runner.errors import Diagnostic
from runner.recipe.schema import hints, load, step_entries
from runner.recipe.schema import kinds as discovery
from runner.recipe.syntax import nodes
from runner.recipe.syntax.nodes import Node
from runner.recipe.types import Path

if TYPE_CHECKING:
    from jsonschema import ValidationError

_CODES = {
    "type": "R201",
    "enum": "R203",
    "const": "R203",
    "minimum": "R204",
    "maximum": "R204",
    "exclusiveMinimum": "R204",
    "exclusiveMaximum": "R204",
    "multipleOf": "R204",
    "pattern": "R206",
    "minLength": "R206",
    "maxLength": "R206",
    "minItems": "R207",
    "maxItems": "R207",
    "minProperties": "R207",
    "maxProperties": "R207",
}
_BOOLEANS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}
_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
_TYPES: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "string": (str,), "boolean": (bool,)}


@dataclass(frozen=True)
class _Scope:
    """The place of a validated value in the recipe: the path of its root, and its name and help in complaints."""

    root: Node
    base: Path
    kind: str | None = None
    left_out: bool = False
    elsewhere: tuple[str, ...] = ()  # keys that are missing here because they are misplaced, which is reported

    @property
    def help(self) -> str | None:
        return f"`runner steps {self.kind}` lists every parameter" if self.kind else None


def check(root: Node, left_out: Collection[int] = ()) -> list[Diagnostic]:
    """Return every complaint about `root`, in the order of the text.

    Steps whose index is in `left_out` take no part: values in them that come from params may be anything.
    """
    complaints: list[Diagnostic] = []
    document = nodes.plain(root)
    listed = root.entries.get("steps")
    for index, step in enumerate(listed.items if listed is not None else ()):
        if not isinstance(step.value, dict):
            continue
        path: Path = ("steps", index)
        for key in step_entries.other_keys(step):
            document["steps"][index].pop(key)
        kind = _kind(step, root, path, complaints)
        if kind is not None:
            scope = _Scope(root, (*path, kind), kind, index in left_out, tuple(_misplaced(step, kind)))
            params = nodes.plain(step.entries[kind])
            complaints += _against(load.kind_schema(kind), {} if params is None else params, scope)
    complaints += _against(load.recipe_schema(), document, _Scope(root, ()))
    return sorted(complaints, key=position)


def position(complaint: Diagnostic) -> tuple[str, int, int]:
    """Return the sort key of a complaint: its place in the text."""
    span = complaint.span
    return (span.file, span.line, span.column) if span is not None else ("", 0, 0)


def _kind(step: Node, root: Node, path: Path, complaints: list[Diagnostic]) -> str | None:
    """Return the kind of a step, if it is known; complain about other keys that a step cannot have."""
    others = step_entries.other_keys(step)
    known = [key for key in others if discovery.find(key) is not None]
    if len(known) > 1:
        message = f"a step has exactly one kind; this one has {wording.ticked(known)}"
        help = "begin each with `- ` to make it a step of its own"
        complaints.append(Diagnostic("R212", message, help, step.keys[known[1]]))
        return None
    kinds = known or step_entries.kind_keys(step)
    for key in kinds if not known else []:
        split = hints.two_steps(key)
        if split is not None:
            complaints.append(Diagnostic("R210", *split, step.keys[key]))
            continue
        found = wording.nearest_kind(key, discovery.kinds())
        message = f"unknown step kind `{key}`" + (f"; did you mean `{found}`?" if found is not None else "")
        complaints.append(Diagnostic("R210", message, "`runner steps` lists every kind", step.keys[key]))
    kind = known[0] if known else None
    misplaced = _misplaced(step, kind)
    if kind is not None and misplaced:
        stand, them = ("is a parameter", "it") if len(misplaced) == 1 else ("are parameters", "them")
        verb = "is" if len(misplaced) == 1 else "are"
        message = f"{wording.ticked(misplaced)} {stand} of `{kind}`, and {verb} not indented under it"
        help = f"indent {them} further than `{kind}`, or move {them} into the braces"
        complaints.append(Diagnostic("R205", message, help, step.keys[misplaced[0]]))
    complaints.extend(_stray(key, step) for key in others if key not in (*kinds, *misplaced))
    if not others:
        message = "the step names no kind"
        help = load.step_schema()["x-runner-help"]
        complaints.append(Diagnostic("R211", message, help, nodes.place(root, path)))
    return known[0] if known else None


def _misplaced(step: Node, kind: str | None) -> list[str]:
    """Return the keys of a step that are parameters of its kind: they are not indented far enough."""
    parameters = load.kind_schema(kind).get("properties", {}) if kind is not None else {}
    return [key for key in step_entries.other_keys(step) if key in parameters]


def _stray(key: str, step: Node) -> Diagnostic:
    names = step_entries.sibling_keys()
    message = f"unknown key `{key}` of a step{wording.did_you_mean(key, names)}"
    return Diagnostic("R205", message, f"besides its kind a step may have {wording.ticked(names)}", step.keys[key])


def _against(rules: Mapping[str, Any], value: Any, scope: _Scope) -> Iterator[Diagnostic]:
    from jsonschema import Draft202012Validator  # here, because it takes long to import

    seen: set[Path] = set()
    errors = sorted(Draft202012Validator(rules).iter_errors(value), key=_breadth)
    for error in errors:
        path: Path = tuple(error.absolute_path)
        about_keys = error.validator in ("required", "additionalProperties") or "propertyNames" in error.schema_path
        if _excused(nodes.find(scope.root, (*scope.base, *path)), error, scope):
            continue
        if error.instance is None and path and _explained(path, scope):
            continue
        if not about_keys and any(path == place[: len(path)] for place in seen):
            continue  # one complaint about a value is enough, the most precise one
        seen.add(path)
        if error.validator == "required":
            if (missing := _missing(error, path, scope)) is not None:
                yield missing
        elif error.validator == "additionalProperties":
            yield from _unknown(error, path, scope)
        elif "propertyNames" in error.schema_path:
            yield _misnamed(error, path, scope)
        else:
            yield _wrong(error, path, scope)


def _explained(path: Path, scope: _Scope) -> bool:
    """Return whether unknown keys after a missing value, which are reported, explain it."""
    parent = nodes.find(scope.root, (*scope.base, *path[:-1]))
    if parent is None or scope.kind is not None or len(path) != 1:
        return False
    properties = load.recipe_schema()["properties"]
    document = nodes.plain(parent)
    return any(key not in properties and hints.empty_before(key, document, properties) == path[0] for key in document)


def _breadth(error: ValidationError) -> int:
    """Return the rank of an error: errors about combinations come last, as simpler ones explain them."""
    if error.validator in ("anyOf", "oneOf", "not", "if"):
        return 2
    return 1 if "then" in error.schema_path or "else" in error.schema_path else 0


def _excused(node: Node | None, error: ValidationError, scope: _Scope) -> bool:
    """Return whether the value is already reported, or comes from a param in a step that is left out."""
    if node is None or error.validator in ("required", "additionalProperties"):
        return False
    if node.broken or (scope.left_out and node.reference is not None):
        return True
    return _breadth(error) > 0 and any(part.broken for _, part in nodes.walk(node))


def _label(path: Path, scope: _Scope) -> str:
    if not path:
        return scope.kind or "the recipe"
    if not scope.kind and path[0] == "steps" and len(path) > 1:
        return wording.label(path[2:]) or "a step"
    return wording.label(path)


def _owner(path: Path, scope: _Scope) -> str:
    label = _label(path, scope)
    return label if label in ("the recipe", "a step") else f"`{label}`"


def _help(error: ValidationError, scope: _Scope) -> str | None:
    return error.schema.get("x-runner-help", scope.help) if isinstance(error.schema, Mapping) else scope.help


def _missing(error: ValidationError, path: Path, scope: _Scope) -> Diagnostic | None:
    """Return the complaint about a missing key; None where another complaint explains it."""
    keys: list[str] = error.schema["required"] if isinstance(error.schema, Mapping) else []
    key = next(key for key in keys if f"'{key}' is a required property" == error.message)
    written: Any = error.instance
    if (key in scope.elsewhere and not path) or any(hints.means(other, key, error.schema) for other in written):
        return None
    message = f"{_owner(path, scope)} needs `{key}`"
    part = error.schema.get("properties", {}).get(key, {}) if isinstance(error.schema, Mapping) else {}
    help = part.get("x-runner-help") or scope.help or part.get("description")
    return Diagnostic("R202", message, help, nodes.key_place(scope.root, (*scope.base, *path)))


def _unknown(error: ValidationError, path: Path, scope: _Scope) -> Iterator[Diagnostic]:
    rules: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    properties: Mapping[str, Any] = rules.get("properties", {})
    node = nodes.find(scope.root, (*scope.base, *path))
    written: Any = error.instance
    for key in written:
        if key in properties:
            continue
        span = node.keys.get(key, node.span) if node is not None else None
        if (meant := hints.without_colon(key, properties)) is not None:
            message = f"`{key}` is no key: a colon is missing after `{meant}`"
            yield Diagnostic("R205", message, f"write `{meant}:` and its value after it", span)
            continue
        if (empty := hints.empty_before(key, written, properties)) is not None:
            message = f"`{key}` is indented like `{empty}`, which is empty"
            yield Diagnostic("R205", message, f"indent it further than `{empty}`, if it belongs there", span)
            continue
        suggestion = hints.elsewhere(key, properties) or wording.did_you_mean(key, properties)
        message = f"unknown key `{key}` of {_owner(path, scope)}{suggestion}"
        help = scope.help or f"it may have {wording.ticked(properties)}"
        if scope.kind and not path and key in step_entries.sibling_keys():
            help = f"`{key}` is a key of the step, not a parameter of `{scope.kind}`"
            message = f"unknown key `{key}` of {_owner(path, scope)}"
        yield Diagnostic("R205", message, help, span)


def _misnamed(error: ValidationError, path: Path, scope: _Scope) -> Diagnostic:
    node = nodes.find(scope.root, (*scope.base, *path))
    span = node.keys.get(str(error.instance), node.span) if node is not None else None
    rules = error.schema if isinstance(error.schema, Mapping) else {}
    wanted = wording.expects(rules)
    message = f"{wording.show(error.instance)} cannot be a name in {_owner(path, scope)}: it must be {wanted}"
    return Diagnostic("R206", message, None, span)


def _wrong(error: ValidationError, path: Path, scope: _Scope) -> Diagnostic:
    rules: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    place = (*scope.base, *path)
    node = nodes.find(scope.root, place)
    value: Any = error.instance
    alternatives = error.validator == "oneOf" and isinstance(value, dict) and value
    got = f"; got {wording.ticked(value) if alternatives else wording.show(value)}"
    if node is not None and node.reference is not None:
        got += f" (from `{node.reference}`)"
    owner = _owner(path, scope)
    message = f"{owner} must be {wording.expects(rules)}{got}{_suggestion(rules, value)}"
    if error.validator in _COUNTS and ("x-runner-expects" not in rules or not value):
        message = f"{owner} must have {_count(str(error.validator), rules)}; it has {len(value)}"
    elif (
        "x-runner-expects" not in rules and error.validator not in _CODES and error.validator not in ("anyOf", "oneOf")
    ):
        message = f"{owner} does not fit: {error.message}"
    return Diagnostic(_code(error, rules, value), message, _help(error, scope), nodes.place(scope.root, place))


def _count(keyword: str, rules: Mapping[str, Any]) -> str:
    limit = rules[keyword]
    noun = "entry" if limit == 1 else "entries"
    return f"at {'least' if keyword.startswith('min') else 'most'} {limit} {noun}"


def _suggestion(rules: Mapping[str, Any], value: Any) -> str:
    options = [rules, *rules.get("anyOf", [])]
    choices = [choice for option in options for choice in [*option.get("enum", []), option.get("const")]]
    if not isinstance(value, str):
        return ""
    if rules.get("type") == "boolean" and value.lower() in _BOOLEANS:
        return f"; did you mean {wording.show(_BOOLEANS[value.lower()])}?"
    found = wording.nearest(value, [choice for choice in choices if isinstance(choice, str)])
    return f"; did you mean {wording.show(found)}?" if found is not None else ""


def _code(error: ValidationError, rules: Mapping[str, Any], value: Any) -> str:
    if "then" in error.schema_path or "else" in error.schema_path:
        return "R208"
    if error.validator == "anyOf":
        return _code_of_choice(rules["anyOf"], value)
    return _CODES.get(str(error.validator), "R208")


def _code_of_choice(options: list[Mapping[str, Any]], value: Any) -> str:
    """Return the code of a value that fits no option: out of range, not allowed, or of a wrong type."""
    for option in options:
        types = _TYPES.get(str(option.get("type")), ())
        if isinstance(value, types) and not (isinstance(value, bool) and bool not in types):
            return "R204" if str not in types else "R206"
    choices = [choice for option in options for choice in [*option.get("enum", []), option.get("const")]]
    return "R203" if any(type(choice) is type(value) for choice in choices) else "R201"
