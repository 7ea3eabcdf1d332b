"""Round to nearest: every weight to the closest point of its tensor's, channel's or group's grid.

Calibration data is needed only for the scales of inputs, where a scheme has them, and for `grid: weighted_mse`, which
weighs errors by the mean square of the inputs (what llama.cpp calls an importance matrix).
"""

from __future__ import annotations

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, Inputs, Params
from runner.errors import Diagnostic, StepFailed
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import automatic
from runner.steps.assignment import is_auto
from runner.steps.layer_method import ERRORS
from runner.steps.layerwise import LayerMethod, bind
from runner.steps.targets import stored_scheme, ways

VERSION = 7
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = ERRORS
WEIGHTED = "weighted_mse"
EXACT = "exact"


def wanted(params: Params) -> str:
    """Return the statistic that serves every module, including those with `overrides`."""
    if params["grid"] == WEIGHTED:
        return "input_norms"
    return "input_range" if any(own.calibrated for own in ways(params)) else "none"


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Round to nearest; `error` is relative, ‖Q − W‖² / ‖W‖²."""
    from runner.methods import exact_casts
    from runner.methods.quantization_grid import make_grid, round_and_measure
    from runner.methods.quantization_scheme import stored_levels, with_input_scale

    scheme = stored_scheme(params)
    levels = stored_levels(scheme, params["format"], linear.dtype)
    importance = statistics.of("input_norms").square() if params["grid"] == WEIGHTED else None
    if params["grid"] == EXACT:
        grid = exact_casts.exact_grid(linear.weight, levels, linear.largest)
    else:
        grid = make_grid(linear.weight, levels, params["grid"], importance, linear.largest)
    quantized, error = round_and_measure(linear.weight, grid, linear.dtype)
    if params["grid"] == EXACT and (place := exact_casts.first_inexact(linear.weight, quantized)) is not None:
        raise _inexact(linear, quantized.group_size, *place)
    quantized = with_input_scale(quantized, scheme, statistics.largest_input, linear.dtype)
    return Transformed(quantized=quantized, metrics={"weight_error": error})


def _inexact(linear: Linear, size: int, row: int, column: int) -> StepFailed:
    first, value = column - column % size, float(linear.weight[row, column])
    return StepFailed(
        f"`{linear.names[0]}` cannot be cast exactly: in row {row}, columns {first} to {first + size - 1} are not all "
        f"levels times one power of two; the first that would change, in column {column}, is {value:g}",
        "use `grid: mse`, which rounds; or `ignore` the module",
    )


def without_statistics(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Round to nearest an expert that saw too few tokens for `grid: weighted_mse`: every column weighs the same."""
    return transform(linear, statistics, {**params, "grid": "mse"} if params["grid"] == WEIGHTED else params)


method = LayerMethod(transform, statistics=wanted, fallback=without_statistics)
_check_modules, estimate, outcome, run = bind(method)
environment, unsettled = automatic.environment, automatic.unsettled


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    return _check_modules(params, inputs) + _check_data(params) + _check_exact(params)


def _check_exact(params: Params) -> list[Diagnostic]:
    """Return a complaint about `grid: exact` with numbers whose scales are no powers of two."""
    if params["grid"] != EXACT:
        return []
    wrong = sorted(own.weights.describe() for own in ways(params) if not castable(own))
    wrong = ["the integers of `bits: auto`"] if is_auto(params) else wrong
    if not wrong:
        return []
    message = f"`grid: exact` casts to floats in groups, whose scales can be powers of two, not to {wrong[0]}"
    return [Diagnostic("R658", message, "use `scheme: nvfp4a16`, `mxfp4a16` or `mxfp8a16`", path=("grid",))]


def castable(scheme: Scheme) -> bool:
    """Return whether its weights are floats in groups, so that every scale can be a power of two."""
    return scheme.weights.element.startswith("float") and scheme.strategy == "group"


def _check_data(params: Params) -> list[Diagnostic]:
    """Return a complaint where calibration data is missing, or has no effect."""
    named, calibrated = params.get("data") is not None, sorted(s.describe() for s in ways(params) if s.calibrated)
    if named and wanted(params) == "none":
        message = "`data` has no effect: no scheme of this step has calibrated inputs, and `grid` weighs no columns"
        return [Diagnostic("R418", message, "leave it out", path=("data",))]
    if named or wanted(params) == "none":
        return []
    if calibrated:
        message = f"the inputs of a scheme have a scale that only data gives, and the step names none: {calibrated[0]}"
        remedy = "name calibration text with `data`, or choose a scheme whose inputs need no calibration"
        return [Diagnostic("R612", message, remedy, path=("scheme",))]
    message = "`grid: weighted_mse` weighs columns by their inputs on calibration text, and the step names none"
    return [Diagnostic("R612", message, "name calibration text with `data`, or use `grid: mse`", path=("grid",))]
