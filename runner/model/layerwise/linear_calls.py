"""Which linear modules of a model a forward calls, and whether the model's code reads their weights while it loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from runner.contracts.model_description import LinearModule, Linears
from runner.model.layerwise import refusals
from runner.model.layerwise.expert_stream import ExpertsStandIn, runs_one_by_one
from runner.model.layerwise.linear import is_linear


def linears(model: Any, modules: Iterable[LinearModule]) -> Linears:
    """The linear modules of an empty model, each marked with whether a forward on the meta device calls it.

    They stay unmarked where the forward depends on values, which that device does not have.
    """
    shapes = called(model)
    marked = tuple(
        each if shapes is None else replace(each, called=each.name in shapes, flat=shapes.get(each.name) == 2)
        for each in modules
    )
    return Linears(marked, needed(model))


def called(model: Any) -> dict[str, int] | None:
    """The linear modules that a forward calls, by name, with the number of dimensions of their inputs.

    None where no forward can be run on the meta device.
    """
    found: dict[str, int] = {}
    names: dict[int, list[str]] = {}
    handles = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.update(dict.fromkeys(names[id(module)], inputs[0].ndim))

    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear(module):
            if id(module) not in names:
                handles.append(module.register_forward_pre_hook(note))
            names.setdefault(id(module), []).append(name)
    try:
        with experts_stood_in(model):
            refusals.meta_forward(model, cached=False)
    except Exception:  # noqa: BLE001  whatever the model's code raises, nothing is known of its calls
        return None
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def experts_stood_in(model: Any) -> Iterator[None]:
    """Have modules of experts do nothing for a while: how many tokens each gets depends on values."""
    experts = {name: module for name, module in model.named_modules() if runs_one_by_one(module)}
    for name, module in experts.items():
        model.set_submodule(name, ExpertsStandIn(module))
    try:
        yield
    finally:
        for name, module in experts.items():
            model.set_submodule(name, module)


def needed(model: Any) -> bool:
    """Whether initializers of the model's own code fail on linear modules that have no `weight`, as packed ones.

    transformers runs them on whatever a checkpoint does not store under the names that a model has.
    """
    initialize = getattr(model, "initialize_weights", None)
    if initialize is None:
        return False
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [(module, module._parameters.pop("weight")) for module in linears if "weight" in module._parameters]
    try:
        with torch.no_grad():
            initialize()
    except AttributeError as error:
        return "'weight'" in str(error)
    finally:
        for module, weight in weights:
            module._parameters["weight"] = weight
    return False
