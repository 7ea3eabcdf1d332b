"""The schemas of the recipe and of every step kind, and the defaults in them.

A kind's schema may share parts of the recipe's: `{"$ref": "../core.schema.json#/$defs/gates"}`. Such references are
replaced here by their targets, to which neighbouring keywords are added; the returned schemas refer to nothing.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from runner.errors import MachineError, UsageError
from runner.recipe.schema import kinds as discovery

Schema = dict[str, Any]

_CORE = "core.schema.json"
_DEFS = "#/$defs/"


def kinds() -> tuple[str, ...]:
    """Return every step kind, sorted."""
    return discovery.kinds()


@functools.cache
def recipe_schema() -> Schema:
    """Return the schema of a recipe without the kinds: a step has no property for them. Treat it as read-only."""
    core = _core()
    return cast(Schema, _written_out({key: part for key, part in core.items() if key != "$defs"}))


@functools.cache
def step_schema() -> Schema:
    """Return the schema of the keys of a step other than its kind: id, from, when, resources, env."""
    return cast(Schema, recipe_schema()["properties"]["steps"]["items"])


def kind_schema(kind: str) -> Schema:
    """Return the schema of a kind's parameters; read-only.

    Raises UsageError for an unknown kind, MachineError for a broken schema.
    """
    source = discovery.find(kind)
    if source is None:
        raise UsageError(f"unknown step kind `{kind}`", "`runner steps` lists every kind")
    return _kind_schema(source)


def references(kind: str) -> Mapping[str, str]:
    """Return what a kind's parameters refer to: parameter → "data", "checkpoint" or "gates"."""
    properties = kind_schema(kind).get("properties", {})
    return {name: part["x-runner-ref"] for name, part in properties.items() if "x-runner-ref" in part}


def defaults(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return `params` in the order of the schema, with every default filled in, nested ones too."""
    return cast(dict[str, Any], fill(kind_schema(kind), dict(params)))


def fill(schema: Mapping[str, Any], value: Any) -> Any:
    """Return `value` with the schema's defaults, its keys in the schema's order, and 4.0 as 4 for integers."""
    if isinstance(value, Mapping):
        return _fill_mapping(schema, value)
    if isinstance(value, list):
        return [fill(schema.get("items", {}), item) for item in value]
    return _number(schema, value)


def _fill_mapping(schema: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties", {})
    further = schema.get("additionalProperties", {})
    further = further if isinstance(further, Mapping) else {}
    filled: dict[str, Any] = {}
    for name, part in properties.items():
        if name in value:
            filled[name] = fill(part, value[name])
            continue
        for other, defaults in part.get("x-runner-default-by", {}).items():  # another parameter may decide it
            if value.get(other) in defaults:
                filled[name] = defaults[value[other]]
        if name not in filled and "default" in part:
            filled[name] = fill(part, copy.deepcopy(part["default"]))
    return filled | {name: fill(further, entry) for name, entry in value.items() if name not in properties}


def _number(schema: Mapping[str, Any], value: Any) -> Any:
    """Return a number in the type of its schema: JSON Schema accepts 4.0 for an integer and 1 for a number.

    One form of each makes equal recipes equal.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    options = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
    types = [option.get("type") for option in options]
    choices = [choice for option in options for choice in option.get("enum", [option.get("const")])]
    if isinstance(value, float) and value.is_integer() and ("integer" in types or _has_integer(choices, value)):
        return int(value)
    if isinstance(value, int) and "number" in types:
        return float(value)
    return value


def _has_integer(choices: list[Any], value: float) -> bool:
    return any(type(choice) is int and choice == value for choice in choices)


@functools.cache
def _core() -> Schema:
    return _read(discovery.schemas_folder() / _CORE)


@functools.cache
def _kind_schema(source: discovery.Source) -> Schema:
    file = discovery.schema_file(source)
    schema = cast(Schema, _written_out(_read(file)))
    if source.origin != "runner":
        _check(source, schema, file)
    return schema


def _check(source: discovery.Source, schema: Schema, file: Path) -> None:
    """Raise MachineError for a kind's schema that is invalid or allows unknown parameters."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise MachineError(f"the schema of step kind `{source.kind}`, {file}, is wrong: {error.message}") from None
    if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
        raise MachineError(
            f"the schema of step kind `{source.kind}`, {file}, lets unknown parameters through",
            'give it "type": "object" and "additionalProperties": false',
        )


def _read(file: Path) -> Schema:
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MachineError(f"the schema {file} cannot be read: {error}") from None
    if not isinstance(schema, dict):
        raise MachineError(f"the schema {file} is not a mapping")
    return schema


def _written_out(part: Any) -> Any:
    """Return `part` with each reference to a definition of the core schema replaced by that definition."""
    if isinstance(part, list):
        return [_written_out(item) for item in part]
    if not isinstance(part, dict):
        return part
    reference = part.get("$ref")
    if isinstance(reference, str):
        file, _, name = reference.partition(_DEFS)
        if (file == "" or file.endswith(_CORE)) and name in _core()["$defs"]:
            further = {key: entry for key, entry in part.items() if key != "$ref"}
            return _joined(_written_out(_core()["$defs"][name]), _written_out(further))
    return {key: _written_out(entry) for key, entry in part.items()}


def _joined(base: Any, further: Any) -> Any:
    if isinstance(base, dict) and isinstance(further, dict):
        both = {key: _joined(entry, further[key]) if key in further else entry for key, entry in base.items()}
        return both | {key: entry for key, entry in further.items() if key not in base}
    return further
