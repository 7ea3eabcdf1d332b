"""A recipe's text to a Recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RecipeError
from runner.recipe.load import load, loads
from runner.recipe.syntax import yaml_text
from runner.recipe.types import DataSpec, ModelSpec, Recipe
from tests.recipe.cases import recipe

FULL = """\
version: 1
name: full-${bits}
description: Everything a recipe may have.
params: {model: demo:tiny-llama, bits: 4, sparse: true}
model: {source: "${model}", revision: main}
seed: 7
data:
  calibration: {source: demo:stdlib, split: calibration, samples: 64, sequence_length: 512}
  evaluation: {source: demo:stdlib, split: evaluation, sequence_length: 512, packing: joined}
steps:
  - evaluate.perplexity: {data: evaluation}
    id: baseline
  - prune.wanda: {data: calibration, pattern: "2:4"}
    when: sparse
  - quantize.gptq:
      data: calibration
      bits: "${bits}"
      overrides: {"*.q_proj": {bits: 8}}
    resources: {processes: 1}
  - evaluate.perplexity:
      data: evaluation
      gates: {perplexity: {max_ratio_to: baseline, value: 1.25}}
    id: quality
  - evaluate.divergence: {data: evaluation, against: model}
    from: gptq
"""


def ids(*steps: str) -> list[str]:
    return [step.id for step in loads(recipe(*steps), "r.yaml").steps]


def same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes ask for the same, wherever they are written."""

    def asked(found: Recipe) -> object:
        return dataclasses.replace(found, file="", spans={}, references={}, written={}, warnings=())

    return asked(one) == asked(other)


def test_a_whole_recipe() -> None:
    found = loads(FULL, "r.yaml")
    assert found.name == "full-4"
    assert found.model == ModelSpec("demo:tiny-llama", "main")
    assert found.seed == 7
    assert found.data["calibration"] == DataSpec("calibration", "demo:stdlib", "calibration", 512, 64)
    assert found.data["evaluation"] == DataSpec("evaluation", "demo:stdlib", "evaluation", 512, packing="joined")
    assert [step.id for step in found.steps] == ["baseline", "wanda", "gptq", "quality", "divergence"]
    gptq = found.steps[2]
    assert gptq.params == {
        "data": "calibration",
        "bits": 4,
        "group_size": 128,
        "symmetric": True,
        "act_order": True,
        "grid": "weighted_mse",
        "dampening_fraction": 0.01,
        "true_sequential": True,
        "asymmetric_calibration": "auto",
        "comparison_fraction": 1.0,
        "overrides": {"*.q_proj": {"bits": 8}},
        "ignore": ["lm_head"],
        "format": "pack-quantized",
        "max_shard_size": "5GB",
        "activations": "dynamic",
        "expert_min_tokens": 128,
        "experts": "routed",
        "gates": {},
    }
    assert (gptq.source, gptq.resources) == (None, {"processes": 1})
    assert found.steps[4].source == "gptq"


def test_what_is_left_out_has_its_default() -> None:
    found = loads(recipe("- quantize.rtn:"), "r.yaml")
    assert (found.description, found.seed, found.params) == ("", 0, {})
    assert found.model == ModelSpec("m", None)
    assert found.data["text"] == DataSpec("text", "t", None, 8, None, "text", "documents", None)
    assert found.steps[0].params["bits"] == 8


@pytest.mark.parametrize("sets", [(), ("bits=3", "sparse=false"), ("model=some/where",)])
def test_the_standalone_recipe_asks_for_the_same(sets: tuple[str, ...]) -> None:
    found = loads(FULL, "r.yaml", sets)
    written = yaml_text.dump(found.document)
    assert "${" not in written
    again = loads(written, "recipe.yaml")
    assert same(found, again)
    assert yaml_text.dump(again.document) == written


def test_the_order_of_keys_does_not_matter() -> None:
    one = loads(recipe("- quantize.gptq: {bits: 3, data: text, group_size: 64}"), "r.yaml")
    other = loads(recipe("- quantize.gptq: {group_size: 64, data: text, bits: 3}"), "r.yaml")
    assert yaml_text.dump(one.document) == yaml_text.dump(other.document)


def test_equal_numbers_are_spelt_alike() -> None:
    found = loads(
        recipe("- prune.magnitude: {sparsity: 0, per_layer: {a: 0}}", "- quantize.rtn: {bits: 4.0, group_size: 64.0}"),
        "r.yaml",
    )
    assert [repr(found.steps[0].params[name]) for name in ("sparsity", "per_layer")] == ["0.0", "{'a': 0.0}"]
    assert [repr(found.steps[1].params[name]) for name in ("bits", "group_size")] == ["4", "64"]
    gptq = loads(recipe("- quantize.gptq: {data: text, bits: 3.0}"), "r.yaml").steps[0]
    assert repr(gptq.params["bits"]) == "3"


def test_default_ids() -> None:
    assert ids("- prune.magnitude: {}", "- prune.magnitude: {}", "- quantize.rtn: {}") == [
        "magnitude",
        "magnitude-2",
        "rtn",
    ]


def test_default_ids_avoid_those_that_are_written() -> None:
    steps = [
        "- prune.magnitude: {}",
        "- prune.magnitude: {}",
        "  id: magnitude",
        "- prune.magnitude: {}",
        "  id: magnitude-2",
    ]
    assert ids(*steps) == ["magnitude-3", "magnitude", "magnitude-2"]


def test_default_ids_do_not_depend_on_when() -> None:
    steps = ["- prune.magnitude: {}", "  when: first", "- prune.magnitude: {}"]
    found = loads(recipe(*steps, also="params: {first: true}"), "r.yaml", ["first=false"])
    assert [step.id for step in found.steps] == ["magnitude-2"]
    assert found.document["steps"][0]["id"] == "magnitude-2"


def test_a_step_left_out_may_hold_values_that_its_params_spoil() -> None:
    steps = ["- prune.magnitude: {}", "- quantize.rtn: {bits: '${bits}'}", "  when: bits <= 8"]
    found = loads(recipe(*steps, also="params: {bits: 4}"), "r.yaml", ["bits=16"])
    assert [step.id for step in found.steps] == ["magnitude"]


def test_places_follow_steps_that_move_up() -> None:
    steps = ["- prune.magnitude: {}", "  when: false", "- quantize.rtn: {bits: 4}"]
    found = loads(recipe(*steps), "r.yaml")
    rtn = found.steps[0]
    assert rtn.path == ("steps", 0)
    bits = found.step_span(rtn, ("bits",))
    assert bits is not None
    assert (bits.line, bits.column) == (8, 26)
    assert found.step_span(rtn, ("format",)) == found.step_span(rtn)  # a default points at its step
    step = found.step_span(rtn)
    assert step is not None
    assert (step.line, step.column, step.length) == (8, 5, len("quantize.rtn"))


def test_all_complaints_of_a_stage_are_told_in_the_order_of_the_text() -> None:
    wrong = """\
version: 2
name: a
params: {bits: 4}
model: {source: m, revison: main}
steps:
  - quantize.gptq: {bits: 5, group_size: "${group}"}
  - quantize.gtpq: {}
  - prune.magnitude: {sparsity: 2}
    when: bits <
sed: 1
"""
    with pytest.raises(RecipeError) as caught:
        loads(wrong, "r.yaml", ["bitz=1"])
    assert [(d.code, d.span.line if d.span else 0) for d in caught.value.diagnostics] == [
        ("R223", 0),
        ("R203", 1),
        ("R205", 4),
        ("R202", 6),
        ("R203", 6),
        ("R220", 6),
        ("R210", 7),
        ("R204", 8),
        ("R226", 9),
        ("R205", 10),
    ]


def test_later_stages_wait_for_earlier_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        loads(recipe("- evaluate.perplexity: {data: nowhere}", "- quantize.rtn: {bits: 1}"), "r.yaml")
    assert [d.code for d in caught.value.diagnostics] == ["R204"]


def test_aliases_share_values() -> None:
    found = loads(recipe("- quantize.gptq: &q {data: text}", "- quantize.gptq: *q", "  from: model"), "r.yaml")
    assert found.steps[0].params == found.steps[1].params


KEYS = (
    "version name model source data steps params quantize.rtn evaluate.perplexity bits id from when gates max extends"
)
WORDS = st.sampled_from([*KEYS.split(), "perplexity", "text", "a", "${bits}", "${x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(-1, 9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)


@given(
    st.fixed_dictionaries(
        {}, optional={"version": VALUES, "name": VALUES, "params": VALUES, "model": VALUES, "data": VALUES}
    ),
    VALUES,
)
def test_anything_is_loaded_or_complained_about(written: dict[str, object], steps: object) -> None:
    with contextlib.suppress(RecipeError):
        assert loads(yaml_text.dump({**written, "steps": steps}), "r.yaml").steps


def test_reading_a_recipe_imports_nothing_heavy(tmp_path: Path) -> None:
    file = tmp_path / "full.yaml"
    file.write_text(FULL)
    assert load(file).name == "full-4"
    script = (
        "import sys; from runner.recipe.load import load; load(sys.argv[1]); "
        "print(sorted({'torch', 'transformers', 'numpy', 'safetensors', 'huggingface_hub', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
