"""Modules that stand in for decoder layers: one keeps what a layer is called with, one gives back what was computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Call = tuple[tuple[Any, ...], dict[str, Any]]

# What the layers of an architecture return: hidden states alone, or first in a tuple or list, before what attention
# weights or a cache would be (`more`).
RETURNS: Mapping[str, Callable[[torch.Tensor, Any], Any]] = {
    "hidden states": lambda hidden, more: hidden,
    "a tuple": lambda hidden, more: (hidden,),
    "a pair": lambda hidden, more: (hidden, more),
    "a triple": lambda hidden, more: (hidden, more, more),
    "a list": lambda hidden, more: [hidden],
}


def hidden_states(output: Any) -> torch.Tensor:
    """Return the hidden states in what a layer returns, in any of the forms of RETURNS."""
    found: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return found


class StandIn(nn.Module):
    """A module in the place of a decoder layer, whose attributes are the layer's own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not as a submodule: its parameters are no part of this one

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)


class Recorder(StandIn):
    """Stands in for a decoder layer and keeps what it was called with.

    It passes hidden states on as they are, or what `change` makes of them, and `more` beside them. `passed` tells
    whether it was given what the layer before it, `previous`, gave; where that is not so, the model does something
    between its layers.
    """

    def __init__(self, layer: nn.Module, returns: str, previous: Recorder | None = None, last: bool = False) -> None:
        super().__init__(layer)
        self.__dict__["previous"] = previous
        self.returns, self.last = RETURNS[returns], last
        self.change: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden
        self.more: Any = None
        self.hidden: torch.Tensor | None = None
        self.given: torch.Tensor | None = None
        self.passed = False
        self.call: Call = ((), {})

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        previous = self.__dict__["previous"]
        self.hidden = hidden_states
        self.passed = previous is None or _same(previous.given, hidden_states)
        self.call = (args, kwargs)
        self.given = self.change(hidden_states)
        if self.last:
            raise EndOfLayers
        return self.returns(self.given, self.more)


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    if one is other or one is None:
        return one is other
    return one.shape == other.shape and not one.is_meta and torch.equal(one, other)


class Injector(StandIn):
    """Stands in for a decoder layer and returns given hidden states whatever it is called with."""

    def __init__(self, layer: nn.Module, hidden: torch.Tensor, returns: str) -> None:
        super().__init__(layer)
        self.given = RETURNS[returns](hidden, None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.given


class EndOfLayers(Exception):
    """Ends a probing forward once the last layer's arguments are known."""


class replaced:
    """Context: the decoder layers of a model are others for a while."""

    def __init__(self, model: nn.Module, name: str, modules: list[nn.Module]) -> None:
        self.owner = model.get_submodule(name.rpartition(".")[0])
        self.attribute = name.rpartition(".")[2]
        self.modules = nn.ModuleList(modules)

    def __enter__(self) -> None:
        self.kept = self.owner._modules[self.attribute]
        self.owner._modules[self.attribute] = self.modules

    def __exit__(self, *exc: object) -> None:
        self.owner._modules[self.attribute] = self.kept
