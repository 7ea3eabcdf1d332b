"""Modules that stand in for decoder layers: one keeps what a layer is called with, one gives back what was computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Recorder(nn.Module):
    """Stands in for a decoder layer and keeps what it was called with; attributes are the layer's own."""

    def __init__(self, layer: nn.Module, wrap: bool, last: bool = False) -> None:
        super().__init__()
        self.__dict__["layer"] = layer
        self.wrap = wrap
        self.last = last
        self.hidden: torch.Tensor | None = None
        self.call: Call = ((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.hidden = hidden_states
        self.call = (args, kwargs)
        if self.last:
            raise EndOfLayers
        return (hidden_states,) if self.wrap else hidden_states


class Injector(Recorder):
    """Returns given hidden states whatever it is called with."""

    def __init__(self, layer: nn.Module, hidden: torch.Tensor, wrap: bool) -> None:
        super().__init__(layer, wrap)
        self.given = hidden

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (self.given,) if self.wrap else self.given


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
