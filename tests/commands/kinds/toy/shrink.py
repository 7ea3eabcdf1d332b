"""A checkpoint of three layers that copies its input's weights, reports an error a layer, and can be told to fail."""

from __future__ import annotations

import shutil
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Context, Cost, Inputs, Requirement, Result
from runner.errors import Diagnostic, StepFailed

VERSION = 1
CONSUMES = ("checkpoint",)
PRODUCES = "checkpoint"
REQUIRES: tuple[Requirement, ...] = ()
LIBRARIES: tuple[str, ...] = ()  # it computes nothing with torch
METRICS = ("error",)
ERRORS = (0.01, 0.02, 0.04)


def check(params: Any, inputs: Inputs) -> list[Diagnostic]:
    return []


def estimate(params: Any, inputs: Inputs) -> Cost:
    return Cost(memory=250_000_000, disk=11_500_000, scratch=2_000_000, seconds=12.4)


def outcome(params: Any, inputs: Inputs) -> CheckpointFacts:
    return inputs.checkpoint


def run(ctx: Context) -> Result:
    if ctx.params["fail"]:
        raise StepFailed("tensor `a` of model.safetensors holds 3 NaN values", "download the model again")
    for path in sorted(ctx.inputs["checkpoint"].path.iterdir()):
        shutil.copyfile(path, ctx.out_dir / path.name)
    for layer, error in enumerate(ERRORS, 1):
        ctx.emit("layer", layer=layer, layers=3, seconds=0.1, error=error)
    layers = [{"modules": {"a": {"error": error}}} for error in ERRORS]
    return Result({"error": 0.0233, "modules": 3}, {"layers": layers})
