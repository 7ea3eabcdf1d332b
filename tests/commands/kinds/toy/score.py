"""A measurement that gives the value it was told."""

from __future__ import annotations

from typing import Any

from runner.contracts.step_kind import Context, Cost, Inputs, Requirement, Result
from runner.errors import Diagnostic

VERSION = 1
CONSUMES = ("checkpoint",)
PRODUCES = "metrics"
REQUIRES: tuple[Requirement, ...] = (Requirement("pip", "toys"),)
LIBRARIES: tuple[str, ...] = ()  # it computes nothing with torch
METRICS = ("points",)


def check(params: Any, inputs: Inputs) -> list[Diagnostic]:
    return []


def estimate(params: Any, inputs: Inputs) -> Cost:
    return Cost(memory=100_000_000, disk=0, scratch=0, seconds=0.5)


def run(ctx: Context) -> Result:
    return Result({"points": ctx.params["points"]})
