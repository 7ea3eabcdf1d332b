"""Finds the module of a step kind by its name; nothing imports a concrete kind statically."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Inputs, Kind, MachineFacts, Params, Requirement
from runner.errors import MachineError
from runner.recipe.schema import kinds
from runner.steps import targets
from runner.steps.layer_method import LayerMethod

_NAMES = ("VERSION", "CONSUMES", "PRODUCES", "REQUIRES", "METRICS", "check", "estimate", "run")


def find(kind: str) -> Kind:
    """The module of `kind`, imported.

    Built-in kinds, those in the folders of RUNNER_STEPS_PATH and those of installed packages (entry-point group
    `runner.steps`) are known. Raises UsageError for an unknown kind, MachineError for one that cannot be imported or
    that lacks a name of the protocol.
    """
    module = kinds.module(kind)
    missing = [name for name in _NAMES if not hasattr(module, name)]
    if missing:
        raise MachineError(
            f"step kind `{kind}` does not meet the protocol: {module.__file__} lacks {', '.join(missing)}",
            "runner/contracts/step_kind.py says what a kind holds",
        )
    return cast(Kind, module)


def requirements(kind: Kind, params: Params) -> tuple[Requirement, ...]:
    """The packages that a step of this kind needs with these parameters."""
    chosen: Any = getattr(kind, "requires", None)
    return kind.REQUIRES if chosen is None else tuple(chosen(params))


def environment(kind: Kind, params: Params, machine: MachineFacts) -> Mapping[str, str]:
    """What of the machine decides the result of a step of this kind, by name."""
    told: Any = getattr(kind, "environment", None)
    return {} if told is None else dict(told(params, machine))


def changes(kind: Kind, params: Params, inputs: Inputs) -> Collection[str] | None:
    """The tensors of its main input whose values a step may change; None for a kind that may change all of them."""
    chosen: Any = getattr(kind, "changes", None)
    if chosen is not None:
        return frozenset(chosen(params, inputs))
    layer_wise = isinstance(getattr(kind, "method", None), LayerMethod)
    return targets.changes(params, inputs.checkpoint) if layer_wise else None


def source_facts(kind: Kind, inputs: Inputs) -> CheckpointFacts:
    """The checkpoint that a step makes another one of: its main input, or the one that its kind says."""
    told: Any = getattr(kind, "source_facts", None)
    return inputs.checkpoint if told is None else cast(CheckpointFacts, told(inputs))


def names() -> tuple[str, ...]:
    """Every kind, sorted by name."""
    return kinds.kinds()
