"""Magnitude pruning: the weights of least absolute value become zero, within each tensor or each n:m group."""

from __future__ import annotations

from runner.contracts.step_kind import CHECKPOINT, Params
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import automatic
from runner.steps.layerwise import LayerMethod, bind

VERSION = 4
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = ()


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    from runner.methods import pruning_masks

    keep = pruning_masks.magnitude_mask(linear.weight, params["sparsity"], params["pattern"])
    return pruning_masks.apply_mask(linear.weight, keep)


method = LayerMethod(transform)
check, estimate, outcome, run = bind(method)
environment = automatic.environment
