"""Distillation of predictions (Hinton 2015): a student learns the teacher's distribution over the next token.

The teacher runs once, a layer in memory at a time, and stores its most likely tokens on disk; then the
student is trained alone. The losses are in runner/training/losses.py.
"""

from __future__ import annotations

from dataclasses import replace

from runner.contracts import metric_ranges
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.steps import forward_cost
from runner.steps import teacher as teaching
from runner.steps.distill import pair

VERSION = 4
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = metric_ranges.TRAINING
DISTRIBUTED = True
BASE = "student"


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    return pair.check(params, inputs)


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost of the teacher's pass and the training; the cache and the cut student are in scratch."""
    cost = pair.trained(params, inputs)
    data = inputs.data["data"]
    seen = replace(data, samples=pair.distinct_windows(params, inputs))
    passed = forward_cost.estimate_forward([inputs.others["teacher"]], seen, inputs.machine)
    index = 2 if inputs.others["teacher"].config.vocabulary_size <= 1 << 16 else 4
    cache = seen.tokens * (params["top_k"] * (2 + index) + 4)
    return Cost(
        memory=max(cost.memory, passed.memory),
        disk=cost.disk,
        scratch=cost.scratch + cache + passed.scratch,
        seconds=cost.seconds + passed.seconds,
    )


source_facts = pair.source_facts


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return pair.student_facts(params, inputs)


def run(ctx: Context) -> Result:
    from runner.model.architecture.inspect import facts
    from runner.steps import trained_checkpoint
    from runner.training import checkpoint_writer
    from runner.training import run as fit

    teacher, cache = ctx.inputs["teacher"].path, ctx.scratch_dir / "teacher"
    student = pair.make(ctx, after=facts(teacher, str(teacher)).layer_count)
    arguments = {
        "student": str(student.folder),
        "cache": str(cache),
        **{name: ctx.params[name] for name in ("alpha", "temperature", "divergence")},
    }
    task = fit.prepare(ctx, "runner.training.objectives.logits:build", arguments)
    teaching.cache_teacher_outputs(ctx, task, student.folder, cache, before=len(student.influence or ()))
    fitted = fit.fit(ctx, task)
    account = checkpoint_writer.write(student.folder, fitted.weights, trained_checkpoint.target(ctx, pair.base(ctx)))
    return Result(fitted.metrics, {**pair.details(student), **fitted.details}, account)
