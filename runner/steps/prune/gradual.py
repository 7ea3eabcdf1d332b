"""Magnitude pruning during training, on the polynomial schedule of Zhu & Gupta 2017 (arXiv:1710.01878)."""

from __future__ import annotations

from dataclasses import asdict

from runner.contracts import metric_ranges
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.methods.sparsity_schedule import Schedule
from runner.model.checkpoint import adapter_config
from runner.steps import training_objective
from runner.steps.layerwise import unmatched
from runner.steps.patterns import matches
from runner.training.task import settings

VERSION = 5
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {**metric_ranges.TRAINING, "sparsity": metric_ranges.SHARE}
DISTRIBUTED = True


def schedule(params: Params, steps: int) -> Schedule:
    """Return the schedule of a training of that many steps."""
    begin, end = params["begin_step"], params.get("end_step")
    return Schedule(
        initial=params["initial_sparsity"],
        final=params["sparsity"],
        begin=begin,
        end=max(begin, 3 * steps // 4) if end is None else end,
        every=params["update_every"],
        exponent=params["exponent"],
    )


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = adapter_config.adapter_conflicts(inputs.checkpoint.adapter, "this step would change those")
    found += unmatched(params, inputs.checkpoint) + training_objective.check(params, inputs, damages=True)
    data = inputs.data["data"]
    steps = settings(params, max(1, data.tokens // data.sequence_length), data.sequence_length).steps
    own = schedule(params, steps)
    if own.initial > own.final:
        message = f"`initial_sparsity` {own.initial} is above `sparsity` {own.final}"
        found.append(Diagnostic("R485", message, "weights that became zero stay zero", path=("initial_sparsity",)))
    if own.begin > steps:
        message = f"`begin_step` {own.begin} comes after the last step, {steps}"
        found.append(Diagnostic("R485", message, "begin earlier, or use more `steps`", path=("begin_step",)))
    elif own.end > steps:
        message = f"`end_step` {own.end} comes after the last step, {steps}"
        found.append(Diagnostic("R485", message, f"use at most {steps}, or more `steps`", path=("end_step",)))
    elif own.begin > own.end:
        message = f"`begin_step` {own.begin} comes after `end_step` {own.end}"
        found.append(Diagnostic("R485", message, "begin earlier", path=("begin_step",)))
    return found


def estimate(params: Params, inputs: Inputs) -> Cost:
    return training_objective.estimate(params, inputs, inputs.checkpoint.parameters, inputs.checkpoint.nbytes)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return inputs.checkpoint


def run(ctx: Context) -> Result:
    from runner.model.architecture.inspect import of_artifact
    from runner.steps import trained_checkpoint
    from runner.training import checkpoint_writer

    source = ctx.inputs["checkpoint"].path
    targets = [
        linear.name
        for linear in of_artifact(ctx.inputs["checkpoint"]).sites
        if not any(matches(pattern, linear.name) for pattern in ctx.params["ignore"])
    ]
    data = ctx.data_facts("data")
    steps = settings(ctx.params, data.tokens // data.sequence_length, data.sequence_length).steps
    own = schedule(ctx.params, steps)
    arguments = {"targets": targets, "schedule": asdict(own)}
    fitted = training_objective.train(
        ctx, "runner.training.objectives.gradual_pruning:build", arguments, evaluate_from=own.end
    )
    account = checkpoint_writer.write(source, fitted.weights, trained_checkpoint.target(ctx))
    return Result({**fitted.metrics, "sparsity": own.sparsity(steps)}, fitted.details, account)
