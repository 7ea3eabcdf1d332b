"""GPTQ as steps solve it: with the statistics, the strength and the grid that their params ask for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import MachineFacts, Params
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps.stream_cost import distinct_inputs
from runner.steps.targets import stored_scheme

if TYPE_CHECKING:
    import torch

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


def solve(linear: Linear, statistics: Statistics, params: Params, *, positions: bool = False) -> Transformed:
    """Quantize by GPTQ; weights that are exactly zero stay zero, so that a pruned checkpoint keeps its masks.

    With `positions`, what was rounded is in the result.
    """
    from runner.methods.gptq import factorize, quantize_weight
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
    solution = quantize_weight(linear.weight, factor, grid, keep_zeros=True, positions=positions)
    quantized = with_input_scale(solution.quantized, scheme, statistics.largest_input, linear.dtype)
    metrics = {"error": output_error(solution.error, linear.weight, hessian), "dampening": factor.dampening}
    return Transformed(quantized=quantized, positions=solution.positions, metrics=metrics)


def output_error(errors: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the relative error of a linear's output, tr(E H Eᵀ) / tr(W H Wᵀ), from the diagonal `errors` of E H Eᵀ.

    It is that of up to SAMPLED_ROWS evenly spaced rows: the product W H of all of them would cost as much as solving.
    """
    from runner.methods.gptq import output_energy

    rows = slice(None, None, -(-weight.shape[0] // SAMPLED_ROWS))
    energy = float(output_energy(weight[rows], hessian).sum())
    return float(errors[rows].sum()) / energy if energy > 0 else 0.0


def solving_seconds(facts: CheckpointFacts, machine: MachineFacts) -> float:
    """Return the seconds of solving: a factorization of each second moment, feedback of errors, column operations.

    With little calibration data it is most of the step: for a layer of 2048 × 8192 and 4096 tokens, 7 of 11 s.
    """
    return shape_seconds([(i.rows, i.columns) for i in facts.sites], distinct_inputs(facts), machine)


def shape_seconds(shapes: Sequence[tuple[int, int]], widths: Sequence[int], machine: MachineFacts) -> float:
    """Return the seconds of solving weights of these `shapes` [out, in], whose distinct inputs have these `widths`."""
    products = sum(k**3 for k in widths) / 2 + sum(rows * columns**2 for rows, columns in shapes)
    seconds = products / machine.flops + _COLUMN_SECONDS * sum(widths)
    if machine.device == "cpu":
        weights = sum(rows * columns for rows, columns in shapes)
        seconds += weights / (_SOLVED_WEIGHTS * machine.cpus)
    return seconds
