"""Distillation of predictions (Hinton 2015): a student learns the teacher's distribution over the next token.

The teacher runs once, a layer in memory at a time, and leaves its likeliest tokens on disk; then the student is
trained alone. The losses are in runner/training/losses.py.
"""

from __future__ import annotations

from dataclasses import replace

from runner.errors import Diagnostic
from runner.model.facts import CheckpointFacts
from runner.steps import streamed
from runner.steps.distill import pair
from runner.steps.protocol import CHECKPOINT, Context, Cost, Inputs, Params, Result
from runner.training import vocabulary

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = ("loss", "evaluation_loss", "steps", "tokens")
DISTRIBUTED = True


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    return pair.check(params, inputs)


def estimate(params: Params, inputs: Inputs) -> Cost:
    """The passes before the training, then the training; the cache and the cut student lie in scratch."""
    cost = pair.trained(params, inputs)
    data = inputs.data["data"]
    seen = replace(data, samples=pair.distinct_windows(params, inputs))
    passed = streamed.estimate_forward([inputs.others["teacher"]], seen, inputs.machine)
    index = 2 if vocabulary.size(inputs.others["teacher"].config) <= 1 << 16 else 4
    cache = seen.tokens * (params["top_k"] * (2 + index) + 4)
    return Cost(
        memory=max(cost.memory, passed.memory),
        disk=cost.disk,
        scratch=cost.scratch + cache + passed.scratch,
        seconds=cost.seconds + passed.seconds,
    )


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return pair.student_facts(params, inputs)


def run(ctx: Context) -> Result:
    import torch

    from runner.model.headers import facts, read_config
    from runner.training import fit, teacher, write
    from runner.training.order import order

    ids, teacher_folder = ctx.data("data"), ctx.inputs["teacher"].path
    teacher_facts = facts(teacher_folder, str(teacher_folder))
    student = pair.make(ctx, after=teacher_facts.layer_count)
    arguments = {
        "student": str(student.folder),
        "cache": str(ctx.scratch_dir / "teacher"),
        **{name: ctx.params[name] for name in ("alpha", "temperature", "divergence")},
    }
    task = fit.prepare(ctx, "runner.training.distillation:build", arguments)
    seen = task.settings.steps * task.settings.batch_size
    cached = teacher.cache(
        ctx,
        teacher_folder,
        ids,
        torch.unique(order(len(ids), seen, task.seed)),
        ctx.scratch_dir / "teacher",
        top_k=ctx.params["top_k"],
        temperature=ctx.params["temperature"],
        vocabulary=min(vocabulary.size(config) for config in (teacher_facts.config, read_config(student.folder))),
        before=len(student.influence or ()),
    )
    cached.close()
    fitted = fit.fit(ctx, task)
    write.checkpoint(ctx, student.folder, fitted.weights)
    return Result(metrics=fitted.metrics, details={**pair.details(student), **fitted.details})
