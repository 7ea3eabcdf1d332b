"""Tuning the scales of a packed checkpoint end to end, its integers frozen (Chen 2024, EfficientQAT, section 3.2).

The result is the same checkpoint with other scales: the same files, tensors, types and sizes, and no adapter.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from runner.contracts import metric_ranges
from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.step_kind import QUANTIZED, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.model.checkpoint import adapter_config
from runner.steps import training_objective
from runner.steps.integer_weights import refuse_others

VERSION = 4
CONSUMES = (QUANTIZED,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = metric_ranges.TRAINING
DISTRIBUTED = True


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = adapter_config.adapter_conflicts(inputs.checkpoint.adapter, "this step would change those")
    return found + refuse_others(inputs.checkpoint, "recover.scales") + training_objective.check(params, inputs)


def estimate(params: Params, inputs: Inputs) -> Cost:
    tensors = inputs.checkpoint.tensors.values()
    trained = sum(math.prod(t.shape) for t in tensors if is_scale(t) or (params["norms"] and is_norm(t)))
    return training_objective.estimate(params, inputs, trained, inputs.checkpoint.nbytes)


def is_scale(tensor: TensorHeader) -> bool:
    return tensor.name.endswith((".weight_scale", ".scales"))


def is_norm(tensor: TensorHeader) -> bool:
    return len(tensor.shape) == 1 and tensor.name.endswith("weight")


def changes(params: Params, inputs: Inputs) -> Collection[str]:
    tensors = inputs.checkpoint.tensors.values()
    return [t.name for t in tensors if is_scale(t) or (params["norms"] and is_norm(t))]


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return inputs.checkpoint


def run(ctx: Context) -> Result:
    from runner.model.checkpoint import derived
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.steps import model_card
    from runner.training import checkpoint_patcher

    source = ctx.inputs["checkpoint"].path
    fitted = training_objective.train(ctx, "runner.training.objectives.recovery:scales", {"norms": ctx.params["norms"]})
    changes = checkpoint_patcher.scale_changes(source, fitted.weights)
    with CheckpointReader(source) as reader:
        result = derived.Derived(derived.Patches(changes), card=model_card.render(ctx))
        account = derived.write(reader, result, ctx.out_dir)
    return Result({**fitted.metrics, "changed_tensors": len(changes)}, fitted.details, account)
