"""What steps measure."""

from __future__ import annotations

import pytest

from runner.errors import RecipeError
from runner.recipe import kind_types
from runner.recipe.load import loads
from tests.recipe.cases import recipe


def test_a_gate_may_name_any_metric_of_a_pattern() -> None:
    lines = [
        "- evaluate.tasks: {tasks: [arc_easy]}",
        "  id: before",
        "- evaluate.tasks: {tasks: [arc_easy], gates: {arc_easy/acc: {min_ratio_to: before, value: 0.9}}}",
    ]
    gates = {"arc_easy/acc": {"min_ratio_to": "before", "value": 0.9}}
    assert loads(recipe(*lines), "r.yaml").steps[1].params["gates"] == gates
    assert kind_types.measures("evaluate.tasks", "gsm8k/exact_match/strict-match")
    assert not kind_types.measures("evaluate.perplexity", "arc_easy/acc")
    with pytest.raises(RecipeError) as caught:
        loads(recipe("- evaluate.tasks: {tasks: [arc_easy], gates: {acc: {min: 0.5}}}"), "r.yaml")
    [found] = caught.value.diagnostics
    assert (found.code, found.message) == ("R309", "`evaluate.tasks` does not measure `acc`")
    assert found.help == "it measures `<task>/<metric>`"
