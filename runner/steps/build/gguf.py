"""A GGUF file for llama.cpp: integers of the checkpoint as they are where a block can hold them, the rest as asked."""

from __future__ import annotations

import math
from dataclasses import replace

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, ENGINE, QUANTIZED, Context, Cost, Inputs, Params, Requirement, Result
from runner.errors import Diagnostic, RecipeError, StepFailed
from runner.export import gguf_architecture
from runner.model.checkpoint import adapter_config
from runner.model.checkpoint.headers import model_config
from runner.model.layerwise import memory_budget

VERSION = 2
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = ENGINE
REQUIRES = (Requirement("gguf", "gguf"),)
METRICS = ()


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that the architecture is supported, and that blocks can hold every packed module."""
    from runner.export import preflight
    from runner.export.gguf_blocks import BLOCK, block_type_for

    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "GGUF has no place for it")
    refusal = gguf_architecture.refuse(facts.config)
    if refusal is not None:
        return [*found, Diagnostic("R479", refusal[0], refusal[1])]
    found += _tokenizer(facts)
    packed = {name: scheme for name, (_, scheme) in preflight.schemes(facts).items()}
    wrong: dict[tuple[str, str], list[str]] = {}
    for linear in facts.sites:
        scheme = packed.get(linear.name)
        if linear.columns % BLOCK and (scheme is not None or params["dense"].startswith("q")):
            key = f"has {linear.columns} columns, which blocks of {BLOCK} do not divide", "use `dense: f16`"
            if scheme is not None:
                key = key[0], f"leave it out of the quantization, or {gguf_architecture.ANOTHER}"
            wrong.setdefault(key, []).append(linear.name)
        elif scheme is not None and not isinstance(fit := block_type_for(scheme), str):
            wrong.setdefault(fit, []).append(linear.name)
    for (what, remedy), names in wrong.items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        found.append(Diagnostic("R479", f"`{names[0]}`{more} {what}", remedy))
    return found


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
    """Return the cost; one tensor at a time is in memory, as float32 twice."""
    facts = inputs.checkpoint
    largest = max((math.prod(tensor.shape) for tensor in facts.tensors.values()), default=0)
    linears = sum(i.size for i in facts.sites)
    widest = max((i.size for i in facts.sites), default=0)
    width = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625, "q4_0": 0.5625, "q4_1": 0.625}
    disk = facts.nbytes * 1.2 if facts.quantization else linears * width[params["dense"]]
    disk += memory_budget.rest_bytes(facts, 2) * (width[params["embedding"]] / 2)
    return Cost(
        memory_budget.WEIGHTS_RUNTIME + 12 * max(largest, widest), int(disk), 0, 5 + facts.nbytes / 1e8
    )  # fmt: skip


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return replace(
        inputs.checkpoint, engine={"format": "gguf", **gguf_architecture.described(inputs.checkpoint.config)}
    )


def run(ctx: Context) -> Result:
    from runner.export.gguf_file import write

    return write(ctx, gguf_architecture.described(model_config(ctx.inputs["checkpoint"].path)))
