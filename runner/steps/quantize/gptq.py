"""GPTQ (Frantar et al. 2022): integers chosen a column at a time, the remaining columns compensating each error.

The maths is in runner/methods/gptq.py and quantization_grid.py; `asymmetric_calibration` is GPTAQ (Li et al. 2025).
"""

from __future__ import annotations

from dataclasses import replace

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, Cost, Inputs, Params
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import automatic
from runner.steps.experts import EXPERTS
from runner.steps.gptq_solver import solve, solving_seconds, wanted
from runner.steps.layer_method import ERRORS
from runner.steps.layerwise import LayerMethod, bind
from runner.steps.quantize.rtn import without_statistics

VERSION = 11
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
DIVISIBLE = True
METRICS = {**ERRORS, **EXPERTS}


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Quantize by GPTQ, as `solve` does."""
    return solve(linear, statistics, params)


method = LayerMethod(transform, statistics=wanted, stacked=True, fallback=without_statistics)
check, _stream_estimate, outcome, run = bind(method)
environment, unsettled = automatic.environment, automatic.unsettled


def estimate(params: Params, inputs: Inputs) -> Cost:
    cost = _stream_estimate(params, inputs)
    return replace(cost, seconds=cost.seconds + solving_seconds(inputs.checkpoint, inputs.machine))
