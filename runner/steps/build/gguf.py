"""A GGUF file for llama.cpp: integers of the checkpoint as they are where a block can hold them, the rest as asked."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, ENGINE, QUANTIZED, Context, Cost, Inputs, Params, Requirement, Result
from runner.errors import Diagnostic, RecipeError, StepFailed
from runner.export import (
    gguf_architecture,
    gguf_assignment,
    gguf_metadata,
    gguf_refusals,
    gguf_tensors,
    gguf_types,
)
from runner.export.gguf_assignment import Assignment
from runner.export.gguf_tensors import Entry, entries
from runner.model.architecture import tied_config
from runner.model.checkpoint import adapter_config
from runner.model.checkpoint.headers import model_config
from runner.model.layerwise import memory_budget
from runner.steps import forward_cost, head_calibration

VERSION = 5
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = ENGINE
REQUIRES = (Requirement("gguf", "gguf"),)
METRICS = ()

if TYPE_CHECKING:
    import torch

    from runner.export.tables import Calibration

_ROUNDED = 6e5  # weights that a core finds scales and integers for in a second (measured)


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that architecture and tokenizer are supported, and that blocks can hold every packed module.

    Tensors that get another type than was asked for are warned of.
    """
    from runner.export import preflight
    from runner.export.gguf_blocks import BLOCK, block_type_for

    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "GGUF has no place for it")
    refusal = gguf_refusals.refuse(facts.config)
    if refusal is not None:
        return [*found, Diagnostic("R479", *refusal)]
    found += _tokenizer(facts) + _window(facts)
    wrong: dict[tuple[str, str], list[str]] = {}
    for linear, scheme in preflight.schemes(facts).values():
        if linear.columns % BLOCK:
            what = f"has {linear.columns} columns, which blocks of {BLOCK} do not divide"
            remedy = f"leave it out of the quantization, or {gguf_refusals.ANOTHER}"
            wrong.setdefault((what, remedy), []).append(linear.name)
        elif not isinstance(fit := block_type_for(scheme), str):
            wrong.setdefault(fit, []).append(linear.name)
    found += [Diagnostic("R479", f"{_several(names)} {what}", remedy) for (what, remedy), names in wrong.items()]
    found += _placed(params, facts) + _data(params, facts)
    return found if any(each.severity == "error" for each in found) else [
        *found, *gguf_assignment.check(params, inputs, _tied(facts))
    ]  # fmt: skip


def _several(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"`{names[0]}`{more}"


def _tied(facts: CheckpointFacts) -> bool:
    """Return whether the head is the embedding, as far as headers tell: where both are stored, equal bytes decide."""
    return tied_config.may_tie(facts.config) and "lm_head.weight" not in facts.tensors


def _placed(params: Params, facts: CheckpointFacts) -> list[Diagnostic]:
    """Return complaints about tensors without a place, and warnings of those that get another type."""
    planned, left = entries(facts, params, tied=_tied(facts))
    if left:
        name = gguf_architecture.of(facts.config).name
        what = f"{_several(left)} has no place in a GGUF file of the architecture {name}"
        return [Diagnostic("R479", what, gguf_refusals.ANOTHER)]
    changed: dict[tuple[int, str, str], list[Entry]] = {}
    for entry in planned:
        if entry.wanted not in ("", gguf_types.AUTO, entry.type):
            changed.setdefault((entry.shape[-1], entry.wanted, entry.type), []).append(entry)
    return [
        Diagnostic(
            "R851",
            f"blocks of {gguf_types.SIZES[wanted][0]} do not divide the {columns} columns of "
            f"{_several([entry.modules[0] for entry in found])}: stored as {got.upper()}, not {wanted.upper()}",
            "llama.cpp does the same; a type with blocks of 32, such as q4_0, stores all matrices alike",
            severity="warning",
        )
        for (columns, wanted, got), found in changed.items()
    ]  # fmt: skip


def _data(params: Params, facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a warning of calibration data by which nothing is rounded."""
    if params.get("data") is None or gguf_assignment.is_auto(params):
        return []
    planned, _ = entries(facts, params, tied=_tied(facts))
    if any(map(gguf_tensors.is_weighed, planned)) or gguf_tensors.calibratable(planned):
        return []
    message = "`data` has no effect: no matrix of the layers, nor the head, is rounded to blocks"
    help = "leave it out, or set `dense` or `embedding` to a type of blocks such as q4_0"
    return [Diagnostic("R418", message, help, path=("data",), severity="warning")]


def _window(facts: CheckpointFacts) -> list[Diagnostic]:
    promised = gguf_metadata.context(facts.config)
    if promised == facts.config.context:
        return []
    what = f"llama.cpp ignores the sliding window of {promised} positions; the file promises that many, not more"
    return [Diagnostic("R852", what, "use build.onnx for longer texts", severity="warning")]


def _tokenizer(facts: CheckpointFacts) -> list[Diagnostic]:
    """Return the complaint about a tokenizer that GGUF cannot hold; no step changes its files."""
    from runner.export import gguf_vocabulary

    if facts.tokenizer is None:
        return []
    try:
        gguf_vocabulary.read(facts.tokenizer, facts.config.vocabulary_size)
    except (StepFailed, RecipeError) as error:
        help = error.help if isinstance(error, StepFailed) else error.diagnostics[0].help
        return [Diagnostic("R479", error.message, help)]
    return []


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; one matrix at a time is in memory, as float32 a few times."""
    facts = inputs.checkpoint
    if gguf_refusals.refuse(facts.config) is not None:
        return Cost(memory_budget.WEIGHTS_RUNTIME, facts.nbytes, 0, 5)
    largest_types = gguf_assignment.planned_types(params, facts, _tied(facts))
    planned, _ = entries(facts, params, tied=_tied(facts), assigned=largest_types)
    turns = 1 + len(params.get(gguf_assignment.CANDIDATES) or gguf_assignment.DEFAULT) * bool(largest_types)
    largest = max((math.prod(tensor.shape) for tensor in facts.tensors.values()), default=0)
    widest = max((i.size for i in facts.sites), default=0)
    searched = [e for e in planned if not e.packed and e.type not in gguf_types.FLOATS]
    rounded = turns * sum(math.prod(e.shape) for e in searched)
    seconds = 5 + facts.nbytes / 1e8 + rounded / (_ROUNDED * inputs.machine.cpus)
    own = Cost(
        memory_budget.WEIGHTS_RUNTIME + 12 * max(largest, widest), sum(entry.nbytes for entry in planned), 0, seconds
    )  # fmt: skip
    if "data" not in inputs.data or not searched:
        return own
    if gguf_tensors.calibratable(planned):
        loaded = replace(own, memory=own.memory + memory_budget.RUNTIME - memory_budget.WEIGHTS_RUNTIME)
        own = head_calibration.with_calibration(loaded, facts, inputs.data["data"], inputs.machine)
    if not any(map(gguf_tensors.is_weighed, planned)):
        return own
    forward = forward_cost.estimate_forward([facts], inputs.data["data"], inputs.machine)
    scratch = max(own.scratch, forward.scratch)
    return Cost(max(own.memory, forward.memory), own.disk, scratch, own.seconds + forward.seconds)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return replace(
        inputs.checkpoint, engine={"format": "gguf", **gguf_architecture.described(inputs.checkpoint.config)}
    )


def run(ctx: Context) -> Result:
    from runner.export.gguf_file import write

    config = model_config(ctx.inputs["checkpoint"].path)
    if (refusal := gguf_refusals.refuse(config)) is not None:
        raise StepFailed(*refusal)
    described = gguf_architecture.described(config)
    importance, calibrated = _calibration(ctx) if ctx.params.get("data") is not None else ({}, None)
    assignment = _assignment(ctx, importance) if gguf_assignment.is_auto(ctx.params) else None
    return write(ctx, described, importance, assignment, calibrated)


def _calibration(ctx: Context) -> tuple[dict[str, torch.Tensor], Calibration | None]:
    """Return the importance of the columns of layers, and by what the head is rounded."""
    from runner.export.gguf_file import checked_entries
    from runner.model.architecture import inspect
    from runner.model.checkpoint.reader import CheckpointReader

    folder = ctx.inputs["checkpoint"].path
    facts = inspect.facts(folder, "the checkpoint")
    with CheckpointReader(folder) as reader:
        found = checked_entries(reader, facts, ctx, {})
    weighed = gguf_assignment.is_auto(ctx.params) or any(map(gguf_tensors.is_weighed, found))
    importance = _importance(ctx) if weighed else {}
    before = facts.layer_count if weighed else 0
    return importance, head_calibration.calibration(ctx, before) if gguf_tensors.calibratable(found) else None


def _assignment(ctx: Context, importance: Mapping[str, torch.Tensor]) -> Assignment:
    """Return the types within the budget; the errors that are measured for it outlive an interruption."""
    from runner.contracts import sensitivity
    from runner.export import gguf_weights
    from runner.export.gguf_file import checked_entries
    from runner.model.architecture import inspect
    from runner.model.checkpoint.companions import write_json
    from runner.model.checkpoint.reader import CheckpointReader

    folder, known = ctx.inputs["checkpoint"].path, ctx.scratch_dir / "errors.json"
    errors = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    with CheckpointReader(folder) as reader:
        found = checked_entries(reader, inspect.facts(folder, "the checkpoint"), ctx, {})
        choices = gguf_assignment.choices(ctx.params, found)
        for done, (entry, types) in enumerate(zip(choices.entries, choices.options, strict=True), 1):
            ctx.safe_point()
            if entry.name not in errors:
                errors[entry.name] = gguf_weights.errors(reader, entry, types, importance)
                write_json(known.with_suffix(".new"), errors)
                known.with_suffix(".new").replace(known)
            ctx.emit("progress", phase="errors of types", done=done, total=len(choices.entries), unit="tensors")
    measured = ctx.inputs.get(gguf_assignment.SENSITIVITY)
    assignment = gguf_assignment.assign(
        ctx.params, choices, errors, sensitivity.read(measured.path) if measured is not None else None
    )
    counts = Counter(assignment.types.values())
    shares = ", ".join(f"{counts[type]} {type.upper()}" for type in sorted(counts))
    text = f"assigned {shares}: {assignment.average_bits:.3f} bits a weight, forecast loss {assignment.loss:.4g}"
    ctx.emit("message", level="info", text=text)
    return assignment


def _importance(ctx: Context) -> dict[str, torch.Tensor]:
    """Return the mean square of the inputs of each matrix that is not packed yet."""
    from runner.export import preflight
    from runner.model.architecture.inspect import of_artifact
    from runner.model.layerwise import input_energies
    from runner.model.layerwise.stream_run import StreamInputs
    from runner.steps import layer_stream

    checkpoint = ctx.inputs["checkpoint"]
    facts = of_artifact(checkpoint)
    packed = preflight.schemes(facts)
    modules = [site.name for site in facts.sites if site.name not in packed]
    inputs = StreamInputs(checkpoint.path, facts, ctx.device, ctx.data("data"))
    return input_energies.measure(inputs, modules, layer_stream.stream_run(ctx))
