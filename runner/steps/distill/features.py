"""Distillation of hidden states and attention maps (TinyBERT, Jiao 2020; MiniLM, Wang 2020) besides the predictions.

The frozen teacher stays in memory together with the student. The losses are in runner/training/losses.py.
"""

from __future__ import annotations

from dataclasses import replace

from runner.contracts import metric_ranges
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.model.layerwise import memory_budget
from runner.steps import teacher as teaching
from runner.steps.distill import pair

VERSION = 5
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = metric_ranges.TRAINING
DISTRIBUTED = True
BASE = "student"

_WEIGHTS = ("hidden_weight", "attention_weight", "logits_weight")


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = pair.check(params, inputs)
    if not any(params[name] for name in _WEIGHTS):
        message = "`hidden_weight`, `attention_weight` and `logits_weight` are all 0: nothing is left to learn"
        found.append(Diagnostic("R494", message, "leave one of them out", path=("hidden_weight",)))
    if any(complaint.code == "R491" for complaint in found):
        return found  # the number of the student's layers is not known
    layers = {
        "student": pair.student_facts(params, inputs).layer_count,
        "teacher": inputs.others["teacher"].layer_count,
    }
    for index, entry in enumerate(params.get("layers") or ()):
        for name, count in layers.items():
            if entry[name] >= count:
                message = (
                    f"entry {index + 1} of `layers` names layer {entry[name]} of the {name}, which has the layers 0 to "
                    f"{count - 1}"
                )
                found.append(Diagnostic("R492", message, "layers count from 0", path=("layers", index, name)))
    return found


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost of a training, with the teacher's weights and forwards in every process."""
    teacher, machine = inputs.others["teacher"], inputs.machine
    value = memory_budget.compute_bytes(teacher, machine.device)
    tokens = teaching.forward_tokens(params, inputs)
    length = inputs.data["data"].sequence_length
    heads = teacher.config.heads
    maps = 4 * heads * length * teacher.layer_count if params["attention_weight"] else 0
    states = 2 * 4 * teacher.layer_count * teacher.config.hidden_size
    weights = sum(site.size for site in teacher.sites) * value + memory_budget.rest_bytes(teacher, value)
    teacher_bytes = weights + tokens * (teacher.config.vocabulary_size * value + states + 3 * maps)
    cost = pair.trained(params, inputs, pair.FULL_COPIES, teacher_bytes)
    forwards = 2 * pair.seen_windows(params, inputs) * length * (weights / value) / machine.flops
    return replace(cost, seconds=cost.seconds + forwards)


source_facts = pair.source_facts


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return pair.student_facts(params, inputs)


def run(ctx: Context) -> Result:
    from runner.model.architecture.inspect import facts
    from runner.steps import trained_checkpoint
    from runner.training import checkpoint_writer, layer_selection
    from runner.training import run as fit
    from runner.training.objectives import features

    teacher = ctx.inputs["teacher"].path
    student = pair.make(ctx)
    if ctx.params["attention_weight"]:
        features.require_attention(teacher, "teacher")
        features.require_attention(student.folder, "student")
    theirs, ours = (facts(folder, str(folder)).layer_count for folder in (teacher, student.folder))
    given = ctx.params.get("layers")
    if given is not None:
        pairs = [(entry["student"], entry["teacher"]) for entry in given]
    elif student.kept is not None and student.layers == theirs:
        pairs = list(enumerate(student.kept))
    else:
        pairs = layer_selection.spread(ours, theirs)
    arguments = {
        "student": str(student.folder),
        "teacher": str(teacher),
        "pairs": [list(each) for each in pairs],
        **{name: ctx.params[name] for name in (*_WEIGHTS, "alpha", "temperature", "divergence")},
        "seed": ctx.seed,
    }
    fitted = fit.fit(ctx, fit.prepare(ctx, "runner.training.objectives.features:build", arguments))
    trained = features.without_projections(fitted.weights, ctx.scratch_dir / "trained")
    account = checkpoint_writer.write(student.folder, trained, trained_checkpoint.target(ctx, pair.base(ctx)))
    return Result(fitted.metrics, {**pair.details(student), "pairs": pairs, **fitted.details}, account)
