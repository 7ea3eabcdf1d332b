"""SparseGPT (Frantar & Alistarh 2023): weights pruned a column at a time, the others of their row compensating."""

from __future__ import annotations

from dataclasses import replace

from runner.contracts.step_kind import CHECKPOINT, Cost, Inputs, Params
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import automatic
from runner.steps.experts import EXPERTS
from runner.steps.gptq_solver import output_error, solving_seconds
from runner.steps.layer_method import ERRORS, LayerMethod
from runner.steps.owl import bind
from runner.steps.prune.magnitude import transform as by_magnitude

VERSION = 4
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
DIVISIBLE = True
METRICS = {**ERRORS, **EXPERTS}


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Prune by SparseGPT; `error` is that of the output, as `quantize.gptq` measures it."""
    from runner.methods.gptq import factorize
    from runner.methods.pruning_masks import zero_share
    from runner.methods.sparsegpt import prune

    hessian = statistics.of("hessian")
    factor = factorize(hessian, dampening_fraction=params["dampening_fraction"], act_order=False)
    pruned = prune(linear.weight, factor, params["sparsity"], params["pattern"])
    metrics = {
        "sparsity": zero_share(pruned.weight),
        "error": output_error(pruned.error, linear.weight, hessian),
        "dampening": factor.dampening,
    }
    return Transformed(weight=pruned.weight, metrics=metrics)


method = LayerMethod(transform, statistics="hessian", stacked=True, fallback=by_magnitude)
check, _stream_estimate, outcome, run = bind(method)
environment = automatic.environment


def estimate(params: Params, inputs: Inputs) -> Cost:
    cost = _stream_estimate(params, inputs)
    return replace(cost, seconds=cost.seconds + solving_seconds(inputs.checkpoint, inputs.machine))
