"""GPTQ (Frantar et al. 2022): integers chosen a column at a time, the remaining columns compensating each error.

The maths is in runner/methods/gptq.py and quantization_grid.py; `asymmetric_calibration` is GPTAQ (Li et al. 2025).
"""

from __future__ import annotations

from dataclasses import replace

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, Cost, Inputs, MachineFacts, Params
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps.experts import EXPERTS
from runner.steps.layer_method import ERRORS
from runner.steps.layerwise import LayerMethod, bind, distinct_inputs
from runner.steps.quantize.rtn import without_statistics
from runner.steps.targets import stored_scheme

VERSION = 8
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = {**ERRORS, **EXPERTS}

SAMPLED_ROWS = 512
_SOLVED_WEIGHTS = 8e6  # weights for which one core finds grids and rounds in a second (measured)
_COLUMN_SECONDS = 30e-6  # for launching the operations on one column (measured)


AUTO_BITS = 3  # at so few bits, the errors of earlier layers justify a second set of activations


def strength(params: Params) -> float:
    """Return GPTAQ's α for one module."""
    alpha = params["asymmetric_calibration"]
    return float(params["bits"] <= AUTO_BITS) if alpha == "auto" else float(alpha)


def wanted(params: Params) -> str:
    """Return the statistic that serves every module, including those with `overrides`."""
    ways = [params, *({**params, **changes} for changes in params["overrides"].values())]
    return "cross" if any(map(strength, ways)) else "hessian"


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Quantize by GPTQ; weights that are exactly zero stay zero, so that a pruned checkpoint keeps its masks.

    `error` is that of the output, tr(E H Eᵀ) / tr(W H Wᵀ), over up to SAMPLED_ROWS evenly spaced rows: the product W H
    of all of them would cost as much as solving.
    """
    from runner.methods.gptq import factorize, output_energy, quantize_weight
    from runner.methods.quantization_grid import make_grid
    from runner.methods.quantization_scheme import stored_levels, with_input_scale

    hessian = statistics.of("hessian")
    factor = factorize(
        hessian,
        dampening_fraction=params["dampening_fraction"],
        act_order=params["act_order"],
        cross=statistics.cross,
        alpha=strength(params),
    )
    scheme = stored_scheme(params)
    levels = stored_levels(scheme, params["format"], linear.dtype)
    grid = make_grid(linear.weight, levels, params["grid"], factor.importance(), linear.largest)
    solution = quantize_weight(linear.weight, factor, grid, keep_zeros=True)
    rows = slice(None, None, -(-linear.out_features // SAMPLED_ROWS))
    energy = float(output_energy(linear.weight[rows], hessian).sum())
    error = float(solution.error[rows].sum()) / energy if energy > 0 else 0.0
    quantized = with_input_scale(solution.quantized, scheme, statistics.largest_input, linear.dtype)
    return Transformed(quantized=quantized, metrics={"error": error, "dampening": factor.dampening})


method = LayerMethod(transform, statistics=wanted, stacked=True, fallback=without_statistics)
check, _stream_estimate, outcome, run = bind(method)


def estimate(params: Params, inputs: Inputs) -> Cost:
    cost = _stream_estimate(params, inputs)
    return replace(cost, seconds=cost.seconds + solving_seconds(inputs.checkpoint, inputs.machine))


def solving_seconds(facts: CheckpointFacts, machine: MachineFacts) -> float:
    """Return the seconds of solving: a factorization of each second moment, feedback of errors, column operations.

    With little calibration data it is most of the step: for a layer of 2048 × 8192 and 4096 tokens, 7 of 11 s.
    """
    widths = distinct_inputs(facts)
    products = sum(k**3 for k in widths) / 2 + sum(i.rows * i.columns**2 for i in facts.sites)
    seconds = products / machine.flops + _COLUMN_SECONDS * sum(widths)
    if machine.device == "cpu":
        weights = sum(i.size for i in facts.sites)
        seconds += weights / (_SOLVED_WEIGHTS * machine.cpus)
    return seconds
