"""What `quantize.gptq` asks of the stream."""

from __future__ import annotations

from typing import Any

import pytest

from runner.recipe.schema.load import defaults
from runner.steps import gptq_solver


@pytest.mark.parametrize(
    ("params", "statistic"),
    [
        ({}, "hessian"),
        ({"bits": 8}, "hessian"),
        ({"bits": 3}, "cross"),
        ({"bits": 2}, "cross"),
        ({"bits": 3, "asymmetric_calibration": 0}, "hessian"),
        ({"asymmetric_calibration": 0.25}, "cross"),
        ({"overrides": {"*.down_proj": {"bits": 3}}}, "cross"),
        ({"overrides": {"*.down_proj": {"bits": 8}}}, "hessian"),
    ],
)
def test_the_second_flow_runs_where_some_module_uses_it(params: dict[str, Any], statistic: str) -> None:
    assert gptq_solver.wanted(defaults("quantize.gptq", {"data": "text", **params})) == statistic


@pytest.mark.parametrize(("bits", "alpha"), [(2, 1.0), (3, 1.0), (4, 0.0), (8, 0.0)])
def test_auto_follows_the_bits_of_the_module(bits: int, alpha: float) -> None:
    assert gptq_solver.strength({"bits": bits, "asymmetric_calibration": "auto"}) == alpha
    assert gptq_solver.strength({"bits": bits, "asymmetric_calibration": 0.5}) == 0.5
