"""A package compiled by AOTInductor: torch.export's graph of the model, fused and compiled; torch alone runs it."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import (  # fmt: skip
    CHECKPOINT,
    ENGINE,
    QUANTIZED,
    Context,
    Cost,
    Inputs,
    MachineFacts,
    Params,
    Result,
)
from runner.errors import Diagnostic
from runner.export import supported
from runner.model.checkpoint.headers import model_config
from runner.model.layerwise import memory_budget
from runner.steps.integer_weights import refuse_others

VERSION = 3
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = ENGINE
REQUIRES = ()
METRICS = ()

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_COMPILER = 900 << 20  # torch's compiler imported, and the C++ compiler on a graph of some layers (measured)
_LAYER_SECONDS = 8.0  # most of it in the C++ compiler (measured)


def environment(params: Params, machine: MachineFacts) -> Mapping[str, str]:
    """Return the kind of processor or GPU, for which the code is compiled."""
    if machine.device != "cpu":
        return {"gpu": str(machine.gpu_name)}
    return {"instruction sets": hashlib.sha256(" ".join(machine.instructions).encode()).hexdigest()[:12]}


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that there is a C++ compiler, and that exported graphs of the architecture have been verified."""
    found = refuse_others(inputs.checkpoint, "build.compile")
    refused = supported.refuse(inputs.checkpoint.config)
    if refused is not None:
        found.append(Diagnostic("R477", *refused))
    if compiler() is None:
        named = os.environ.get("CXX")
        what = f"`{named}`, which CXX names, is not there" if named else "there is none: no g++, no clang++"
        found.append(
            Diagnostic("R486", f"`build.compile` needs a C++ compiler, and {what}", "install one: `apt install g++`")
        )
    return found


def compiler() -> str | None:
    """Return the C++ compiler that torch will use: that of CXX, else g++ or clang++; None where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    names = named[:1] or ["g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; memory holds all weights dense three times: in the model, the graph and the package."""
    facts = inputs.checkpoint
    value = _BYTES[params["precision"]]
    weights = dense_bytes(facts, value)
    seconds = 15 + _LAYER_SECONDS * facts.layer_count + 3 * weights / inputs.machine.disk_bytes_per_second
    return Cost(memory_budget.RUNTIME + _COMPILER + 3 * weights, weights, 2 * weights, seconds)


def dense_bytes(facts: CheckpointFacts, value: int) -> int:
    """Return the bytes of all weights unpacked, `value` bytes each."""
    linears = sum(i.size for i in facts.sites)
    return linears * value + memory_budget.rest_bytes(facts, value)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    return replace(inputs.checkpoint, engine=described(inputs.checkpoint.config, params["precision"]))


def described(config: ModelConfig, precision: str) -> dict[str, Any]:
    """Return the part of engine.json that the plan knows."""
    return {
        "format": "aotinductor", "precision": precision, "context": supported.context(config),
        "vocabulary": config.vocabulary_size, "max_batch": None,
    }  # fmt: skip


def run(ctx: Context) -> Result:
    from runner.export.aotinductor_package import write

    return write(ctx, described(model_config(ctx.inputs["checkpoint"].path), ctx.params["precision"]))
