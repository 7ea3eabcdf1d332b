"""The objective of a recovery step: the text, or the model before compression. Imported by the planner: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Context, Cost, Inputs, Params
from runner.errors import Diagnostic
from runner.model.checkpoint.stored_types import stored_type
from runner.model.layerwise import memory_budget
from runner.steps import forward_cost
from runner.steps import teacher as teaching
from runner.training import vocabulary

if TYPE_CHECKING:
    from runner.training.task import Fitted

_WORKING_BYTES = 16  # per weight while it is dense: integers, float32 values, gradient and its product


def check(params: Params, inputs: Inputs, *, damages: bool = False) -> list[Diagnostic]:
    """Return complaints about the teacher and the training.

    A step that `damages` the checkpoint while it trains may learn from the checkpoint as it was.
    """
    from runner.training import check as training

    found: list[Diagnostic] = []
    if params["loss"] == "distill":
        teacher, own = inputs.others["teacher"], inputs.checkpoint
        if teacher is own and not damages:
            message = "`teacher` is the checkpoint itself, from which it can learn nothing"
            help = "let it name the model before it was compressed, or use `loss: next_token`"
            return [Diagnostic("R474", message, help, path=("teacher",))]
        found += _tokens(teacher, own) + teaching.context_complaints("teacher", teacher, inputs)
    return found + training.check(params, inputs)


def _tokens(teacher: CheckpointFacts, own: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint where teacher and checkpoint do not share their tokens.

    Their tokenizers decide where both are at hand, else the number of logits.
    """
    theirs, ours = (
        folder and vocabulary.tokens(folder) for folder in (teaching.located(teacher), teaching.located(own))
    )
    help = "name a teacher of the same tokenizer, or use `loss: next_token`"
    if theirs and ours:
        why = vocabulary.mismatch(theirs, ours)
        if why is None:
            return []
        return [Diagnostic("R490", f"teacher and student have different tokenizers: {why}", help, path=("teacher",))]
    sizes = [facts.config.vocabulary_size for facts in (teacher, own)]
    if sizes[0] == sizes[1]:
        return []
    message = f"the teacher has a vocabulary of {sizes[0]:,} tokens, the checkpoint one of {sizes[1]:,}"
    return [Diagnostic("R490", message, help, path=("teacher",))]


def estimate(params: Params, inputs: Inputs, trained: int, disk: int, further: int = 0) -> Cost:
    """Return the cost of the teacher's pass, if there is one, and then of training `trained` parameters.

    Frozen weights take their packed bytes, or those of the type they compute in; in addition one dense weight at a time
    with its gradient, and `further` bytes of every process.
    """
    from runner.training import estimate as training

    facts = inputs.checkpoint
    value = memory_budget.compute_bytes(facts, inputs.machine.device)
    if params["precision"] != "auto":
        value = 2 if params["precision"] == "bf16" and stored_type(facts) == "bfloat16" else 4
    frozen = facts.nbytes if facts.quantization else facts.parameters * value
    biggest = max((i.size for i in facts.sites), default=0)
    distils = params["loss"] == "distill"
    losses = teaching.TOP_K_COPIES * teaching.chunk_bytes(params, inputs, facts) if distils else 0
    cost = Cost(*training.estimate(
        inputs, params, trained=trained, disk=disk, frozen_bytes=frozen,
        logit_bytes=teaching.LOGIT_BYTES if distils else training.LOGIT_BYTES,
        extra=_WORKING_BYTES * biggest + losses + further,
    ))  # fmt: skip
    if not distils:
        return cost
    from runner.training.task import settings

    data = inputs.data["data"]
    windows = max(1, data.tokens // data.sequence_length)
    chosen = settings(params, windows, data.sequence_length)
    seen = replace(data, samples=min(windows, chosen.steps * chosen.batch_size))
    passed = forward_cost.estimate_forward([inputs.others["teacher"]], seen, inputs.machine)
    entry = 4 if inputs.checkpoint.config.vocabulary_size <= 1 << 16 else 6
    cache = seen.tokens * (params["top_k"] * entry + 4)
    return Cost(
        memory=max(cost.memory, passed.memory),
        disk=cost.disk,
        scratch=cache + max(cost.scratch, passed.scratch),
        seconds=cost.seconds + passed.seconds,
    )


def train(ctx: Context, build: str, arguments: Mapping[str, Any], *, evaluate_from: int = 0) -> Fitted:
    """Run the teacher once, if there is one, then train the objective that `build` makes of `arguments`. Repeatable.

    States before the step `evaluate_from` are not measured, and so never chosen as the best.
    """
    from runner.training import run

    folder = ctx.inputs["checkpoint"].path
    distils = ctx.params["loss"] == "distill"
    cache = ctx.scratch_dir / "teacher"
    task = run.prepare(ctx, build, {
        "checkpoint": str(folder),
        "cache": str(cache) if distils else None,
        "precision": ctx.params["precision"],
        **{name: ctx.params[name] for name in ("distill_alpha", "temperature")},
        **arguments,
    }, params={**ctx.params, "evaluate_from": evaluate_from})  # fmt: skip
    if distils:
        teaching.cache_teacher_outputs(ctx, task, folder, cache)
    return run.fit(ctx, task)
