"""The text of `runner steps`: a list of kinds, or one described from its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from runner import wording
from runner.contracts.step_kind import SAME, Kind
from runner.report.table import Cell, table

Schema = Mapping[str, Any]
REFERENCES = {
    "data": "an entry of `data`",
    "checkpoint": "`model` or the id of an earlier step",
    "engine": "the id of an earlier step that makes an engine",
    "sensitivity": "the id of an earlier step of `analyze.sensitivity`",
    "gates": "metric → {max: x}, {min: x}, {max_ratio_to: step, value: x} or {min_ratio_to: step, value: x}",
}


def listing(kinds: Iterable[tuple[str, Schema]], width: int) -> list[Text]:
    """Return one line for each kind: what it does."""
    rows: list[list[Cell]] = [
        [Text(kind, "bold"), first_sentence(schema.get("description", ""))] for kind, schema in kinds
    ]
    return [*table(rows, width, indent=0), Text(), Text("`runner steps KIND` describes one", "dim")]


def describe(kind: str, schema: Schema, module: Kind, width: int) -> list[Text]:
    """Describe a kind: what it does, takes and makes, its parameters, an example."""
    result = [Text(kind, "bold"), *_paragraph(schema.get("description", ""), width), Text()]
    makes = "the type it takes" if module.PRODUCES == SAME else module.PRODUCES
    facts = [["takes", " or ".join(module.CONSUMES)], ["makes", makes]]
    if module.METRICS:
        facts.append(["metrics", ", ".join(module.METRICS)])
    if module.REQUIRES:
        facts.append(["needs", ", ".join(f"{r.package} (pip install 'runner[{r.extra}]')" for r in module.REQUIRES)])
    result += table(facts, width)
    required = set(schema.get("required", ()))
    properties = schema.get("properties", {})
    if properties:
        result += [Text(), Text("parameters", "bold")]
    for name in sorted(properties, key=lambda name: name not in required):
        result += _parameter(name, properties[name], name in required, width)
    return [*result, Text(), Text("example", "bold"), *(Text(f"  {line}") for line in example(kind, schema))]


def example(kind: str, schema: Schema) -> list[str]:
    """Return an example step in a recipe: the schema's example, else the required parameters."""
    examples = schema.get("examples")
    if examples:
        params = examples[0]
    else:
        required = [n for n in schema.get("properties", {}) if n in schema.get("required", ())]
        params = {name: _sample(name, schema["properties"][name]) for name in required}
    return [f"- {kind}: {inline(params)}"]


def inline(value: Any) -> str:
    """Return a value as inline YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_word(str(k))}: {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(v) for v in value) + "]"
    return _word(value) if isinstance(value, str) else json.dumps(value)


def first_sentence(text: str) -> str:
    """Return the text up to the first full stop or colon that ends a clause, without it."""
    return re.split(r"[.:](?:\s|$)", text, maxsplit=1)[0]


def _sample(name: str, schema: Schema) -> Any:
    if schema.get("x-runner-ref") == "data":
        text = schema.get("description", "").lower()
        return next((name for name in ("calibration", "train") if name in text), "evaluation")
    if schema.get("x-runner-ref") == "checkpoint":
        return "model"
    if "enum" in schema:
        return schema["enum"][0]
    return schema.get("default", schema.get("minimum", name))


def _parameter(name: str, schema: Schema, required: bool, width: int) -> list[Text]:
    line = Text("  ")
    line.append(name, "cyan")
    line.append(f"  {allowed(schema)}")
    if required:
        line.append("  required", "yellow")
    elif "default" in schema:
        line.append(f"  default {inline(schema['default'])}", "dim")
    return [line, *_paragraph(schema.get("description", ""), width, 6)]


def allowed(schema: Schema) -> str:
    """Describe the values that a parameter allows: `one of 2, 3, 4, 8`."""
    if (reference := schema.get("x-runner-ref")) in REFERENCES:
        return REFERENCES[reference]
    further = schema.get("additionalProperties")
    if isinstance(further, Mapping) and schema.get("type") == "object":
        inner = further.get("properties")
        return f"pattern → {'{' + ', '.join(inner) + '}' if inner else wording.expects(further)}"
    return wording.expects(schema)


def _paragraph(text: str, width: int, indent: int = 0) -> list[Text]:
    return table([[text]], width, indent=indent) if text else []


def _word(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w.*-]*", text) and text not in ("true", "false", "null", "yes", "no", "on", "off")
    return text if plain else json.dumps(text, ensure_ascii=False)
