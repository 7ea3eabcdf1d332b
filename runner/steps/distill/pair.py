"""Teacher and student, shared by the kinds of distillation. Imported by the planner: no torch at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.contracts.context import Context
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Cost, Inputs, Params
from runner.errors import Diagnostic, RecipeError
from runner.model.checkpoint import adapter_config
from runner.steps import forward_cost
from runner.steps import teacher as teaching
from runner.training import check as training
from runner.training import estimate as forecast
from runner.training import layer_selection, vocabulary
from runner.training.task import settings

# Copies of a chunk of logits while the loss against the teacher's full logits and its gradient are computed, with
# Jensen-Shannon, which takes the most (measured).
FULL_COPIES = 8


@dataclass(frozen=True)
class Student:
    """The checkpoint that is trained; `kept` are the layers of its source that it has, None for all.

    `layers` is the number of its source's layers, `influence` their measured influence where it decided the choice.
    """

    folder: Path
    layers: int
    kept: list[int] | None = None
    influence: list[float] | None = None


def source_facts(inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the student's source: the checkpoint that `student` names, or the main input."""
    return inputs.others.get("student", inputs.checkpoint)


def student_facts(params: Params, inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the student.

    Which layers are dropped may be decided only when the step runs; until then evenly spaced ones stand for them.
    """
    facts = source_facts(inputs)
    layers = wanted_layers(params, facts.layer_count)
    if layers is None:
        return facts
    return layer_selection.facts(
        facts, layer_selection.evenly(layers, facts.layer_count) if isinstance(layers, int) else layers
    )


def wanted_layers(params: Params, count: int) -> int | list[int] | None:
    """Return how many of `count` layers `student` keeps, or which; None for all."""
    student = params.get("student") or {}
    if "drop" in student:
        return int(count - student["drop"])
    layers: int | list[int] | None = student.get("layers")
    return layers


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return complaints about this pair of student and teacher, and about the training."""
    found = layer_complaints(params, source_facts(inputs))
    student = source_facts(inputs) if found else student_facts(params, inputs)
    found += adapter_config.adapter_conflicts(source_facts(inputs).adapter, "training would change those")
    if "student" in inputs.others and inputs.others["student"].quantization:
        message = "`student` names a quantized checkpoint, whose integers take no gradient"
        found.append(Diagnostic("R449", message, "name it as it was before it was quantized", path=("student",)))
    teacher, own = inputs.others["teacher"], source_facts(inputs)
    found += token_complaints(teacher, own, teaching.located(teacher), teaching.located(own))
    for name, facts in (("teacher", teacher), ("student", own)):
        if name == "teacher" or "student" in inputs.others:
            found += teaching.context_complaints(name, facts, inputs)
    return found + training.check(params, replace(inputs, checkpoint=student))


def layer_complaints(params: Params, facts: CheckpointFacts) -> list[Diagnostic]:
    """Return complaints about the layers that the student is to keep."""
    student, count = params.get("student") or {}, facts.layer_count
    refused = layer_selection.refuse(facts) if wanted_layers(params, count) is not None else None
    if refused is not None:
        return [replace(refused, path=("student",))]
    if student.get("drop", 0) >= count:
        message = f"`drop` leaves out {student['drop']} decoder layers; the checkpoint has {count}"
        return [Diagnostic("R491", message, f"drop {count - 1} or fewer", path=("student", "drop"))]
    layers = student.get("layers")
    path = ("student", "layers")
    if isinstance(layers, int) and layers > count:
        message = f"`layers` asks for {layers} decoder layers; the checkpoint has {count}"
        return [Diagnostic("R491", message, f"keep {count} or fewer", path=path)]
    if not isinstance(layers, Sequence):
        return []
    found = [
        Diagnostic(
            "R491",
            f"`layers` names layer {layer}; the checkpoint has the layers 0 to {count - 1}",
            "layers count from 0",
            path=(*path, index),
        )
        for index, layer in enumerate(layers)
        if layer >= count
    ]
    if not found and list(layers) != sorted(set(layers)):
        message = f"`layers` must name each layer once, in rising order; got {list(layers)}"
        found.append(Diagnostic("R491", message, f"write {sorted(set(layers))}", path=path))
    return found


def token_complaints(
    teacher: CheckpointFacts, student: CheckpointFacts, teacher_folder: Path | None, student_folder: Path | None
) -> list[Diagnostic]:
    """Return complaints where teacher and student do not share their tokens.

    Their tokenizers decide where both are at hand, else the number of logits. Vocabularies padded to different sizes
    are accepted once the tokenizers are known to be the same.
    """
    sizes = [facts.config.vocabulary_size for facts in (teacher, student)]
    help = "distil between models of one tokenizer"
    theirs, ours = (folder and vocabulary.tokens(folder) for folder in (teacher_folder, student_folder))
    if theirs and ours:
        why = vocabulary.mismatch(theirs, ours)
        if why is not None:
            return [
                Diagnostic("R490", f"teacher and student have different tokenizers: {why}", help, path=("teacher",))
            ]
        if min(sizes) > max(ours.values()):
            return []
    if sizes[0] == sizes[1]:
        return []
    message = f"the teacher has a vocabulary of {sizes[0]:,} tokens, the student one of {sizes[1]:,}"
    return [Diagnostic("R490", message, help, path=("teacher",))]


def trained(params: Params, inputs: Inputs, copies: int = teaching.TOP_K_COPIES, further: int = 0) -> Cost:
    """Return the cost of making and training the student, with `further` bytes in memory of every process.

    The losses hold `copies` of a chunk of logits beyond `teaching.LOGIT_BYTES` of each.
    """
    student = student_facts(params, inputs)
    chunk = teaching.chunk_bytes(params, inputs, student)
    cost = Cost(*forecast.estimate(
        inputs, params, trained=student.parameters, disk=student.nbytes, facts=student,
        logit_bytes=teaching.LOGIT_BYTES,
        extra=copies * chunk + further,
    ))  # fmt: skip
    layers = wanted_layers(params, source_facts(inputs).layer_count)
    if layers is None:
        return cost
    if not isinstance(layers, int) or params["student"]["choose"] == "even":
        return replace(cost, scratch=cost.scratch + student.nbytes)
    passed = forward_cost.estimate_forward([source_facts(inputs)], inputs.data["data"], inputs.machine)
    return Cost(
        memory=max(cost.memory, passed.memory),
        disk=cost.disk,
        scratch=cost.scratch + student.nbytes + passed.scratch,
        seconds=cost.seconds + passed.seconds,
    )


def seen_windows(params: Params, inputs: Inputs) -> int:
    """Return how many windows the training will see; a window seen twice counts twice."""
    data = inputs.data["data"]
    chosen = settings(params, _windows(inputs), data.sequence_length)
    return chosen.steps * chosen.batch_size


def distinct_windows(params: Params, inputs: Inputs) -> int:
    """Return how many different windows of the data the training will see."""
    return min(_windows(inputs), seen_windows(params, inputs))


def _windows(inputs: Inputs) -> int:
    data = inputs.data["data"]
    return max(1, data.tokens // data.sequence_length)


def base(ctx: Context) -> str:
    """Return the name of the input that the student is made from."""
    return "student" if "student" in ctx.inputs else "checkpoint"


def make(ctx: Context, after: int = 0) -> Student:
    """Make the student's checkpoint, cut in the scratch folder where `layers` asks for it. Repeatable.

    `after` is the number of layers that the step runs later, for events. Raises RecipeError where teacher and student
    do not share a tokenizer: for models of the Hub this is known only here.
    """
    from runner.model.architecture.inspect import facts as read_facts
    from runner.model.layerwise.stream_run import StreamRun
    from runner.steps.layer_stream import hooks
    from runner.training import layer_dropping as student

    source_folder = ctx.inputs[base(ctx)].path
    teacher_folder = ctx.inputs["teacher"].path
    facts = read_facts(source_folder, str(source_folder))
    teacher = read_facts(teacher_folder, str(teacher_folder))
    complaints = token_complaints(teacher, facts, teacher_folder, source_folder)
    if complaints:
        raise RecipeError(complaints)
    layers = wanted_layers(ctx.params, facts.layer_count)
    if layers is None:
        return Student(source_folder, facts.layer_count)
    influence = None
    if not isinstance(layers, int):
        kept = list(layers)
    elif ctx.params["student"]["choose"] == "even":
        kept = layer_selection.evenly(layers, facts.layer_count)
    else:
        scratch = ctx.scratch_dir / "influence"
        measuring = StreamRun(scratch, scratch / "influence.json", hooks(ctx), after=after)
        influence = student.influence(source_folder, ctx.data("data"), ctx.device, measuring)
        kept = layer_selection.most_influential(layers, influence)
    student.cut(source_folder, kept, ctx.scratch_dir / "student")
    return Student(ctx.scratch_dir / "student", facts.layer_count, kept, influence)


def details(student: Student) -> dict[str, Any]:
    """Return the details of the student for the record."""
    found: dict[str, Any] = {}
    if student.kept is not None:
        found["kept_layers"] = student.kept
    if student.influence is not None:
        found["influence"] = student.influence
    return found
