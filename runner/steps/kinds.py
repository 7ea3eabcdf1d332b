"""Finds the module of a step kind by its name; nothing imports a concrete kind statically."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from runner.contracts.facts import CheckpointFacts
from runner.contracts.noise import Noise
from runner.contracts.step_kind import Inputs, Kind, MachineFacts, Params, Requirement
from runner.errors import MachineError
from runner.recipe import kind_types
from runner.recipe.schema import kinds
from runner.steps import targets
from runner.steps.layer_method import LayerMethod

LIBRARIES = ("torch", "transformers")

_NAMES = ("VERSION", "CONSUMES", "PRODUCES", "REQUIRES", "METRICS", "check", "estimate", "run")


def find(kind: str) -> Kind:
    """Return the module of `kind`, imported.

    Built-in kinds, those in the folders of RUNNER_STEPS_PATH and those of installed packages (entry-point group
    `runner.steps`) are known. Raises UsageError for an unknown kind, MachineError for one that cannot be imported or
    that lacks a name of the protocol.
    """
    module = kinds.module(kind)
    missing = [name for name in _NAMES if not hasattr(module, name)]
    if missing:
        raise MachineError(
            f"step kind `{kind}` does not meet the protocol: {module.__file__} lacks {', '.join(missing)}",
            "runner/contracts/step_kind.py lists what a kind needs",
        )
    return cast(Kind, module)


def requirements(kind: Kind, params: Params) -> tuple[Requirement, ...]:
    """Return the packages that a step of this kind needs with these parameters."""
    chosen: Any = getattr(kind, "requires", None)
    return kind.REQUIRES if chosen is None else tuple(chosen(params))


def libraries(kind: Kind) -> tuple[str, ...]:
    """Return which of torch and transformers decide the result of such a step; their versions are in its key."""
    return tuple(getattr(kind, "LIBRARIES", LIBRARIES))


def environment(kind: Kind, params: Params, machine: MachineFacts) -> Mapping[str, str]:
    """Return the properties of the machine that decide the result of a step of this kind, by name."""
    own: Any = getattr(kind, "environment", None)
    return {} if own is None else dict(own(params, machine))


def changes(kind: Kind, params: Params, inputs: Inputs) -> Collection[str] | None:
    """Return the tensors of the main input whose values a step may change; None where it may change all."""
    chosen: Any = getattr(kind, "changes", None)
    if chosen is not None:
        return frozenset(chosen(params, inputs))
    layer_wise = isinstance(getattr(kind, "method", None), LayerMethod)
    return targets.changes(params, inputs.checkpoint) if layer_wise else None


def adds(kind: Kind, params: Params, inputs: Inputs) -> Mapping[str, str]:
    """Return the tensors of a step's result that come from none of its input, each with the reason."""
    own: Any = getattr(kind, "adds", None)
    return {} if own is None else dict(own(params, inputs))


def trains(kind: Kind, params: Params, inputs: Inputs) -> str:
    """Return what a step trains, for the plan: "19,968 parameters, …"; "" where its kind does not say."""
    own: Any = getattr(kind, "trains", None)
    return "" if own is None else str(own(params, inputs))


def unsettled(kind: Kind, params: Params, inputs: Inputs) -> Collection[str]:
    """Return the tensors of a step's result whose shape is not known before it runs."""
    own: Any = getattr(kind, "unsettled", None)
    return frozenset() if own is None else frozenset(own(params, inputs))


def source_facts(kind: Kind, inputs: Inputs) -> CheckpointFacts:
    """Return the checkpoint that a step derives its result from: its main input, or that which its kind names."""
    own: Any = getattr(kind, "source_facts", None)
    return inputs.checkpoint if own is None else cast(CheckpointFacts, own(inputs))


def noise(kind: str, metric: str) -> Noise | None:
    """Return of which values a metric of a kind is made; None where the kind keeps none."""
    declared: Mapping[str, Noise] = getattr(kinds.module(kind), "NOISE", {})
    name = kind_types.matching(declared, metric)
    return declared[name] if name is not None else None


def names() -> tuple[str, ...]:
    """Return every kind, sorted by name."""
    return kinds.kinds()


def is_divisible(kind: str) -> bool:
    """Return whether several processes share the work of a step of a kind without a change of its bytes."""
    return bool(getattr(kinds.module(kind), "DIVISIBLE", False))


def is_alone(kind: str) -> bool:
    """Return whether steps of a kind measure the machine, so that nothing else may run there meanwhile."""
    return bool(getattr(kinds.module(kind), "ALONE", False))
