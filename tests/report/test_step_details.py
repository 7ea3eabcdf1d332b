from __future__ import annotations

from typing import Any

import pytest

from runner.report import step_details
from runner.report.step_details import Curve, Evaluation, Layer, Module, Point


def test_layers_and_modules() -> None:
    found = step_details.layers(
        {"layers": [{"layer": 3, "modules": {"a": {"error": 0.25, "bits": 4}, "b": {"error": 0.5}}}]}
    )
    modules = (Module("a", 0.25, None, None, 4), Module("b", 0.5, None, None, None))
    assert found == (Layer(3, 0.375, None, modules),)


@pytest.mark.parametrize(
    "foreign", [{}, {"layers": 5}, {"layers": [1, None, {"modules": 4}]}, {"layers": None}, {"layers": [{"x": 1}]}]
)
def test_details_of_other_forms_are_left_out(foreign: dict[str, Any]) -> None:
    assert step_details.layers(foreign) == ()
    assert list(step_details.layer_errors(foreign)) == []


def test_an_error_that_is_no_number_is_left_out() -> None:
    (layer,) = step_details.layers({"layers": [{"modules": {"a": {"error": float("nan")}, "b": {"error": True}}}]})
    assert (layer.layer, layer.error) == (0, None)


def test_a_curve() -> None:
    found = step_details.curve({
        "curve": [{"step": 1, "loss": 3, "learning_rate": 0.1}, {"step": 2, "loss": float("inf")}, {"loss": 1}],
        "evaluations": [{"step": 2, "loss": 2.5}, "x"], "kept": 2,
    })  # fmt: skip
    assert found == Curve((Point(1, 3.0, 0.1),), (Evaluation(2, 2.5),), 2)


@pytest.mark.parametrize("none", [{}, {"curve": []}, {"curve": "x"}, {"evaluations": [{"step": 1, "loss": 1}]}])
def test_no_curve(none: dict[str, Any]) -> None:
    assert step_details.curve(none) is None


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("model.layers.3.mlp.down_proj", "mlp.down_proj"),
        ("model.layers.3.mlp.experts.12.w1", "mlp.experts.*.w1"),
        ("lm_head", "lm_head"),
    ],
)
def test_the_place_in_a_layer(module: str, place: str) -> None:
    assert step_details.place_in_layer(module) == place
