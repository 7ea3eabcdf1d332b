"""What steps take."""

from __future__ import annotations

import pytest

from runner.errors import RecipeError
from runner.recipe import chain
from runner.recipe.load import loads
from tests.recipe.cases import recipe

FOUND = loads(
    recipe(
        "- evaluate.perplexity: {data: text}",
        "  id: baseline",
        "- prune.wanda: {data: text}",
        "- quantize.gptq: {data: text}",
        "- evaluate.perplexity: {data: text, gates: {perplexity: {max: 20}, loss: {max: 3}}}",
        "- evaluate.divergence: {data: text, against: wanda}",
        "- quantize.rtn: {}",
        "  from: wanda",
        "- evaluate.divergence: {data: text}",
    ),
    "r.yaml",
)


def test_the_nearest_earlier_checkpoint_is_taken() -> None:
    assert chain.inputs_of(FOUND) == {
        "baseline": {"checkpoint": "model"},
        "wanda": {"checkpoint": "model"},
        "gptq": {"checkpoint": "wanda"},
        "perplexity": {"checkpoint": "gptq"},
        "divergence": {"checkpoint": "gptq", "against": "wanda"},
        "rtn": {"checkpoint": "wanda"},
        "divergence-2": {"checkpoint": "rtn", "against": "model"},
    }


def test_data_by_parameter() -> None:
    found = chain.data_of(FOUND)
    assert found["gptq"] == {"data": "text"}
    assert found["rtn"] == {}


def test_gates_are_apart_from_params() -> None:
    step = FOUND.steps[3]
    assert chain.gates_of(step) == {"perplexity": {"max": 20.0}, "loss": {"max": 3.0}}
    assert chain.params_of(step) == {"data": "text"}
    assert chain.gates_of(FOUND.steps[2]) == {}


def test_a_gate_may_name_any_metric_of_a_pattern() -> None:
    lines = [
        "- evaluate.tasks: {tasks: [arc_easy]}",
        "  id: before",
        "- evaluate.tasks: {tasks: [arc_easy], gates: {arc_easy/acc: {min_ratio_to: before, value: 0.9}}}",
    ]
    assert chain.gates_of(loads(recipe(*lines), "r.yaml").steps[1]) == {
        "arc_easy/acc": {"min_ratio_to": "before", "value": 0.9}
    }
    assert chain.measures("evaluate.tasks", "gsm8k/exact_match/strict-match")
    assert not chain.measures("evaluate.perplexity", "arc_easy/acc")
    with pytest.raises(RecipeError) as caught:
        loads(recipe("- evaluate.tasks: {tasks: [arc_easy], gates: {acc: {min: 0.5}}}"), "r.yaml")
    [found] = caught.value.diagnostics
    assert (found.code, found.message) == ("R309", "`evaluate.tasks` does not measure `acc`")
    assert found.help == "it measures `<task>/<metric>`"
