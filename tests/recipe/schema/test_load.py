"""The schemas: defaults, what kinds refer to, and the one for editors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from runner.errors import UsageError
from runner.recipe.load import loads
from runner.recipe.schema import editor, kinds, load
from runner.recipe.syntax import yaml_text
from runner.recipe.syntax.nodes import plain
from tests.recipe.cases import HEAD, recipe
from tests.recipe.test_load import FULL

BUILT_IN = tuple(
    f"{path.parent.name}.{path.stem}"
    for path in sorted((Path(__file__).parents[3] / "runner" / "steps").glob("*/*.py"))
    if "\nVERSION = " in path.read_text(encoding="utf-8")
)
REFERENCES_ONLY = """\
version: 1
name: "x-${bits}"
params: {m: demo:x, bits: 4, n: 1, t: true, s: 0.5, g: channel, f: gptq, w: 5GB}
model: {source: "${m}", revision: "${m}"}
seed: "${n}"
data: {text: {source: "${m}", sequence_length: "${n}", samples: "${n}", packing: "${m}"}}
steps:
  - quantize.gptq:
      data: "${m}"
      bits: "${bits}"
      group_size: "${g}"
      symmetric: "${t}"
      act_order: "${t}"
      grid: "weighted_${m}"
      dampening_fraction: "${s}"
      asymmetric_calibration: "${s}"
      format: "${f}"
      max_shard_size: "${n}GB"
      ignore: ["${m}"]
      overrides: {a: {bits: "${bits}", group_size: "${n}", symmetric: "${t}"}}
    id: "q-${bits}"
    from: "${m}"
    resources: {processes: "${n}"}
  - prune.magnitude: {sparsity: "${s}", pattern: "${m}", per_layer: {a: "${s}"}}
    when: "${t}"
  - prune.magnitude: {sparsity: "${s}", pattern: "2:4"}
  - evaluate.perplexity: {data: "${m}", gates: {perplexity: {max_ratio_to: "${m}", value: "${s}"}, loss: {max: "${s}"}}}
  - quantize.rtn: {bits: "${bits}", format: gptq, group_size: "${g}"}
  - quantize.rtn:
"""
EXTENDS = "extends: a.yaml\ndata: {text: {samples: 4}}\nsteps:\n"


def read(written: str) -> Any:
    return plain(yaml_text.parse(written, "r.yaml"))


@pytest.fixture(params=[Draft202012Validator, Draft7Validator], ids=["2020-12", "draft-07"])
def validator(request: pytest.FixtureRequest) -> Any:
    """Both the draft that the schema names and the one that editors speak."""
    return request.param(editor.bundled())


def test_the_bundle_is_a_schema_and_refers_to_itself_alone() -> None:
    bundled = editor.bundled()
    Draft202012Validator.check_schema(bundled)
    Draft7Validator.check_schema(bundled)
    written = json.dumps(bundled)
    assert "x-runner-" not in written
    assert {part.split('"')[0][0] for part in written.split('"$ref": "')[1:]} == {"#"}


def test_the_schema_in_the_repository_is_the_bundle_of_the_built_in_kinds() -> None:
    built_in = {kind: load.kind_schema(kind) for kind in kinds.builtin()}
    file = kinds.schemas_folder() / "recipe.schema.json"
    assert file.read_text() == editor.as_text(editor.build(load.recipe_schema(), built_in)), (
        "run: python -m runner.recipe.schema.editor > schemas/recipe.schema.json"
    )


@pytest.mark.parametrize("written", [FULL, REFERENCES_ONLY], ids=["full", "references"])
def test_the_bundle_takes(validator: Any, written: str) -> None:
    assert [error.message for error in validator.iter_errors(read(written))] == []


@pytest.mark.parametrize(
    "step",
    ["- id: gptq\n    when: false", "- quantize.gptq: {bits: 3}", "- quantize.gptq:\n    id: x"],
)
def test_the_bundle_takes_a_recipe_that_changes_another(validator: Any, step: str) -> None:
    assert validator.is_valid(read(f"{EXTENDS}  {step}\n"))


@pytest.mark.parametrize(
    "written",
    [
        "version: 1\n",
        HEAD + "steps: []\n",
        recipe("- id: x"),
        recipe("- quantize.gtpq: {data: text}"),
        recipe("- quantize.rtn: {}", "  prune.magnitude: {}"),
        recipe("- quantize.gptq: {data: text, bits: 5}"),
        recipe('- quantize.gptq: {data: text, bits: "4"}'),
        recipe('- quantize.gptq: {data: text, dampening_fraction: "1${bits}"}'),
        recipe('- quantize.gptq: {data: text, symmetric: "$${x}y"}'),
        recipe("- quantize.gptq: {data: text, group_size: 8}"),
        recipe("- quantize.gptq: {data: text, bit: 4}"),
        recipe("- quantize.gptq: {bits: 4}"),
        recipe("- quantize.gptq:"),
        recipe("- quantize.rtn: {bits: 5, format: gptq}"),
        recipe('- prune.magnitude: {sparsity: 0.3, pattern: "2:4"}'),
        recipe("- evaluate.perplexity: {data: text, gates: {perplexity: {max: 2, min: 1}}}"),
        recipe("- evaluate.perplexity: {data: text, gates: {perplexity: {max_ratio_to: x}}}"),
        recipe("- quantize.rtn: {}").replace("version: 1", 'version: "${one}"'),
        recipe("- quantize.rtn: {}").replace("model: {source: m}", "model: {revision: m}"),
        recipe("- quantize.rtn: {}").replace(", sequence_length: 8", ""),
        EXTENDS + "  - when: false\n",
        EXTENDS + "  - quantize.gptq: {}\n    quantize.rtn: {}\n",
    ],
)
def test_the_bundle_refuses(validator: Any, written: str) -> None:
    assert not validator.is_valid(read(written))


def test_the_bundle_describes_what_it_completes() -> None:
    bundled = editor.bundled()
    step = bundled["$defs"]["step"]["properties"]
    assert list(step) == [*load.kinds(), "id", "from", "when", "resources", "env", "before", "after", "remove"]
    assert all(part.get("description") for part in step.values())
    gptq = bundled["$defs"]["quantize.gptq"]["properties"]
    assert all(part.get("description") for part in gptq.values())
    assert {name: part.get("default") for name, part in gptq.items()} == {
        **loads(recipe("- quantize.gptq: {data: text}"), "r.yaml").steps[0].params,
        "data": None,
        **dict.fromkeys(("sensitivity", "budget", "candidates")),  # of `bits: auto`
        "scheme": None,  # without it the parameters that follow it have their own defaults
    }


@pytest.mark.parametrize(("written", "bits"), [({}, 4), ({"scheme": "fp8"}, 8), ({"scheme": "fp8", "bits": 4}, 4)])
def test_a_default_may_follow_another_parameter(written: dict[str, Any], bits: int) -> None:
    assert load.defaults("quantize.gptq", {"data": "text", **written})["bits"] == bits


def test_kinds() -> None:
    assert load.kinds() == BUILT_IN
    assert {"distill.logits", "quantize.gptq", "evaluate.perplexity"} < set(BUILT_IN)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_parameter_is_described_and_required_or_has_a_default(kind: str) -> None:
    rules = load.kind_schema(kind)
    Draft202012Validator.check_schema(rules)
    assert rules["additionalProperties"] is False
    assert rules["title"]
    assert rules["description"]
    required = set(rules.get("required", ()))
    for name, part in rules["properties"].items():
        assert part["description"], name
        if name not in required and "default" not in part:
            said = re.search(r"\b(Default|Without|None|left out|Left out)\b", part["description"])
            assert said, f"{name}: what happens where it is not given?"
        assert not (name in required and "default" in part), name
        if "default" in part:
            assert Draft202012Validator(part).is_valid(part["default"]), name


def test_an_unknown_kind() -> None:
    with pytest.raises(UsageError, match=r"^unknown step kind `quantize\.nothing`$"):
        load.kind_schema("quantize.nothing")


def test_references() -> None:
    assert load.references("evaluate.divergence") == {"data": "data", "against": "checkpoint", "gates": "gates"}
    assert load.references("quantize.rtn") == {"data": "data", "sensitivity": "sensitivity", "gates": "gates"}
    assert load.references("prune.magnitude") == {"sensitivity": "sensitivity"}


def test_defaults_are_filled_in_at_every_depth() -> None:
    rules = {
        "properties": {
            "student": {
                "default": {},
                "properties": {"layers": {"default": 5}, "width": {}, "head": {"properties": {"dim": {"default": 64}}}},
            },
            "stages": {"items": {"properties": {"steps": {"default": 50}}}},
            "by_name": {"additionalProperties": {"properties": {"rank": {"default": 16}}}},
        }
    }
    assert load.fill(rules, {}) == {"student": {"layers": 5}}
    written = {"by_name": {"q": {}}, "stages": [{}, {"steps": 1}], "student": {"head": {}}}
    assert load.fill(rules, written) == {
        "student": {"layers": 5, "head": {"dim": 64}},
        "stages": [{"steps": 50}, {"steps": 1}],
        "by_name": {"q": {"rank": 16}},
    }


def test_defaults_are_not_shared_between_steps() -> None:
    one = load.defaults("quantize.rtn", {})
    one["ignore"].append("x")
    assert load.defaults("quantize.rtn", {})["ignore"] == ["lm_head"]


def test_the_schemas_travel_beside_the_package() -> None:
    folder = kinds.schemas_folder()
    assert sorted(file.name for file in (folder / "steps").iterdir()) == [f"{kind}.schema.json" for kind in BUILT_IN]
    assert isinstance(folder, Path)
