"""Round to nearest: every weight to the closest point of its tensor's, channel's or group's grid. No calibration."""

from __future__ import annotations

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, Params
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps.layer_method import ERRORS
from runner.steps.layerwise import LayerMethod, bind
from runner.steps.targets import stored_scheme

VERSION = 4
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = ERRORS


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Round to nearest; `error` is relative, ‖Q − W‖² / ‖W‖²."""
    from runner.methods.quantization_grid import quantize_rtn
    from runner.methods.quantization_scheme import stored_levels

    levels = stored_levels(stored_scheme(params), params["format"], linear.dtype)
    quantized = quantize_rtn(linear.weight, levels)
    error = quantized.dequantize(linear.dtype).float() - linear.weight
    total = linear.weight.square().sum().clamp_min(1e-30)
    return Transformed(quantized=quantized, metrics={"weight_error": float(error.square().sum() / total)})


method = LayerMethod(transform)
check, estimate, outcome, run = bind(method)
