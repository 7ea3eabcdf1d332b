"""What a missed gate stops: the later steps that depend on what was measured. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.contracts.step_kind import METRICS_ONLY
from runner.plan.types import PlannedStep
from runner.recipe import references

STOP, CONTINUE, WARN = "stop", "continue", "warn"
_MAIN = "checkpoint"  # the parameter of a step's main input


def dependents(steps: Sequence[PlannedStep], step: PlannedStep, missed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of later steps that do not run where `step` misses gates with these rules.

    A step that makes a checkpoint or an engine was measured itself, any other measured its main input. What depends on
    that is stopped, except where every rule names it as `mended_by`, and what depends on that one alone.
    """
    if not missed:
        return []
    made = step.produces != METRICS_ONLY
    measured = {step.id if made else step.inputs.get(_MAIN, step.id)}
    mending = set.intersection(*({rule["mended_by"]} if "mended_by" in rule else set() for rule in missed))
    return _descendants(steps, step, measured, mending)


def dependents_of_failed(steps: Sequence[PlannedStep], step: PlannedStep) -> list[str]:
    """Return the ids of a step that ended early at a gate, without a result, and of the steps that depend on it."""
    return [step.id, *_descendants(steps, step, {step.id}, set())]


def _descendants(
    steps: Sequence[PlannedStep], step: PlannedStep, measured: set[str], mending: set[str]
) -> list[str]:  # fmt: skip
    found: list[str] = []
    for later in steps:
        if later.index <= step.index:
            continue
        needed = {*later.inputs.values(), *compared(later)}
        if needed & set(found) or (set(later.inputs.values()) & measured and later.id not in mending):
            found.append(later.id)
    return found


def compared(step: PlannedStep) -> set[str]:
    """Return the steps that the gates of a step compare with."""
    named = [references.from_rule(rule) for rule in step.gates.values()]
    return {each.step for each in named if each is not None and each.job is None and each.step is not None}
