"""The schema for editors: that of the recipe and of every kind, where any value may also be a `${...}` reference.

It uses only what draft 2020-12 and draft-07 (which editors support) have in common, and refers only to itself.
`python -m runner.recipe.schema.editor` prints the one of the built-in kinds, which is schemas/recipe.schema.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from runner.recipe.schema import kinds, load
from runner.recipe.schema.step_entries import PLACING

Schema = dict[str, Any]

_REFERENCE = {"$ref": "#/$defs/reference"}
_INTERPOLATED = {"$ref": "#/$defs/interpolated"}
_CONTAINERS = ("object", "array")
_ANNOTATIONS = ("title", "description", "default", "examples", "deprecated")
_CONSTRAINTS = ("enum", "const", "pattern", "minLength", "maxLength", "format", "not")
_NEVER_A_REFERENCE = ("version", "extends", "params", "matrix")

DEFINITIONS: dict[str, Schema] = {
    "reference": {
        "description": "The value of a param.",
        "type": "string",
        "pattern": "^\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}$",
    },
    "interpolated": {
        "description": "Text in which params are filled in.",
        "type": "string",
        "pattern": "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}",
    },
}


def build(recipe: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Any]]) -> Schema:
    """Return the schema; `recipe` and `kinds` are those of runner.recipe.schema.load."""
    step = recipe["properties"]["steps"]["items"]
    properties = {
        name: _bare(part) if name in _NEVER_A_REFERENCE else _open(_partial(part))
        for name, part in recipe["properties"].items()
    }
    properties["steps"] = {**properties["steps"], "items": {"$ref": "#/$defs/step"}}
    names = [{"required": [kind]} for kind in kinds]
    needs = {kind: _needs(schema) for kind, schema in kinds.items() if _needs(schema)}
    placing = [{"required": [key]} for key in PLACING]
    full_step = {"oneOf": names, "properties": needs, "not": {"anyOf": placing}}
    parts = {name: _needs(part) for name, part in recipe["properties"].items() if name != "steps" and _needs(part)}
    complete = {"required": list(recipe["required"]), "properties": {**parts, "steps": {"items": full_step}}}
    # A recipe that extends another may leave out what that one has, and name its steps by id alone.
    by_id = {"required": ["id"], "not": {"anyOf": names}}
    removal = {"if": {"required": ["remove"]}, "then": {"required": ["id"], "maxProperties": 2}}
    one_place = {"not": {"required": ["before", "after"]}}
    patch = {"properties": {"steps": {"items": {"oneOf": [*names, by_id], **one_place, **removal}}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": recipe["title"],
        "description": recipe["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "if": {"required": ["extends"]},
        "then": patch,
        "else": complete,
        "$defs": {
            "step": _step(step, kinds),
            **{kind: _kind(schema) for kind, schema in kinds.items()},
            **DEFINITIONS,
        },
    }


def _step(step: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Any]]) -> Schema:
    bare = ("when", *PLACING)
    siblings = {name: _bare(part) if name in bare else _open(part) for name, part in step["properties"].items()}
    of_kinds = {
        kind: {"description": schema.get("description", kind), "$ref": f"#/$defs/{kind}"}
        for kind, schema in kinds.items()
    }
    return {
        "description": step["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": {**of_kinds, **siblings},
    }


def _kind(schema: Mapping[str, Any]) -> Schema:
    """Return the schema of a kind's parameters, which may also be written as `kind:` without a value."""
    opened = {key: part for key, part in _open(schema).items() if key not in ("$schema", "required")}
    return {**opened, "type": ["object", "null"]}


def _partial(schema: Mapping[str, Any]) -> Schema:
    """Return `schema` without the requirements that `_needs` returns."""
    rest = {key: part for key, part in schema.items() if key != "required"}
    if isinstance(rest.get("additionalProperties"), Mapping):
        rest["additionalProperties"] = {k: v for k, v in rest["additionalProperties"].items() if k != "required"}
    return rest


def _needs(schema: Mapping[str, Any]) -> Schema:
    """Return the requirements of a mapping, or of each of its entries.

    They are separate because a recipe that extends another need not meet them.
    """
    if schema.get("required"):
        return {"type": "object", "required": list(schema["required"])}
    further = schema.get("additionalProperties")
    if isinstance(further, Mapping) and further.get("required"):
        return {"additionalProperties": _needs(further)}
    return {}


def _bare(part: Any) -> Any:
    """Return a schema without the annotations that only runner reads."""
    if isinstance(part, Mapping):
        return {key: _bare(entry) for key, entry in part.items() if not str(key).startswith("x-runner-")}
    return [_bare(item) for item in part] if isinstance(part, list) else part


def _open(schema: Mapping[str, Any]) -> Schema:
    """Return `schema` with references allowed for each typed value inside it."""
    bare: Schema = _bare(schema)
    reference = None if bare.get("type") in _CONTAINERS else _alternative(bare)
    if reference is None:
        return {key: _open_inside(key, part) for key, part in bare.items()}
    notes = {key: bare[key] for key in _ANNOTATIONS if key in bare}
    if set(bare) - set(notes) == {"anyOf"}:
        options = [_open(option) if option.get("type") in _CONTAINERS else option for option in bare["anyOf"]]
        return {**notes, "anyOf": [*options, reference]}
    limits = {key: part for key, part in bare.items() if key not in notes}
    return {**notes, "anyOf": [limits, reference]}


def _alternative(schema: Schema) -> Schema | None:
    """Return what a value may be instead: a reference, text with references, or None for nothing else."""
    choices = [choice for option in (schema, *schema.get("anyOf", [])) for choice in _choices(option)]
    if "anyOf" in schema or choices:
        return _INTERPOLATED if any(isinstance(choice, str) for choice in choices) else _REFERENCE
    kind = schema.get("type")
    if kind in ("integer", "number", "boolean") or isinstance(kind, list):
        return _REFERENCE
    if kind == "string" and any(key in schema for key in _CONSTRAINTS if key != "minLength"):
        return _INTERPOLATED
    return None


def _choices(schema: Schema) -> list[Any]:
    return [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]


def _open_inside(key: str, part: Any) -> Any:
    if key in ("properties", "patternProperties"):
        return {name: _open(entry) for name, entry in part.items()}
    if key in ("additionalProperties", "items", "then", "else") and isinstance(part, dict):
        return _open(part)
    if key == "allOf":
        return [_open(entry) for entry in part]
    return part


def as_text(schema: Mapping[str, Any]) -> str:
    """Return the JSON of a schema as written in schemas/recipe.schema.json."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def bundled() -> Schema:
    """Return the schema for editors with every kind, built in or installed."""
    return build(load.recipe_schema(), {kind: load.kind_schema(kind) for kind in kinds.kinds()})


def main() -> None:
    """Write the schema of the built-in kinds to stdout."""
    built_in = {kind: load.kind_schema(kind) for kind in kinds.builtin()}
    sys.stdout.write(as_text(build(load.recipe_schema(), built_in)))


if __name__ == "__main__":
    main()
