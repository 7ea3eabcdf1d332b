"""A step that makes only metrics: `params` are metric → number."""

from __future__ import annotations

from typing import Any

from runner.contracts.step_kind import Context, Cost, Inputs, Requirement, Result
from runner.errors import Diagnostic

VERSION = 1
CONSUMES = ("checkpoint",)
PRODUCES = "metrics"
REQUIRES: tuple[Requirement, ...] = ()
LIBRARIES: tuple[str, ...] = ()  # it computes nothing with torch
METRICS = ("perplexity",)


def check(params: Any, inputs: Inputs) -> list[Diagnostic]:
    return []


def estimate(params: Any, inputs: Inputs) -> Cost:
    return Cost(0, 0, 0, 0.0)


def run(ctx: Context) -> Result:
    return Result(dict(ctx.params))
