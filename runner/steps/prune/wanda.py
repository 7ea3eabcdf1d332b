"""Wanda (Sun et al. 2023): within each output row, the weights of least |W_ij| · ‖X_j‖₂ become zero."""

from __future__ import annotations

from runner.contracts.step_kind import CHECKPOINT, Params
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import automatic
from runner.steps.experts import EXPERTS
from runner.steps.layer_method import LayerMethod
from runner.steps.owl import bind
from runner.steps.prune.magnitude import transform as by_magnitude

VERSION = 8
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
DIVISIBLE = True
METRICS = EXPERTS


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    from runner.methods import pruning_masks

    norms = statistics.of("input_norms")
    keep = pruning_masks.wanda_mask(linear.weight, norms, params["sparsity"], params["pattern"])
    return pruning_masks.apply_mask(linear.weight, keep)


method = LayerMethod(transform, statistics="input_norms", stacked=True, fallback=by_magnitude)
check, estimate, outcome, run = bind(method)
environment = automatic.environment
