"""Running one decoder layer in float32 again and again, to find out what a change of it does to its output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.model.layerwise.layer_probes import Call, hidden_states
from runner.model.layerwise.relative_change import relative_change

Basis = Callable[[torch.Tensor], torch.Tensor]  # hidden states → the same in another basis
Place = tuple[int, int, int]  # of a tensor in memory: storage, offset, number of values


@dataclass(frozen=True)
class Trial:
    """A decoder layer in float32, hidden states [batch, length, hidden] and the other arguments that it is called with.

    Arguments that the layer writes to (keys and values that later layers share) are copied for every run.
    """

    layer: nn.Module
    hidden: torch.Tensor
    call: Call

    def run(self, basis: Basis | None = None) -> list[torch.Tensor]:
        """Return what comes out: hidden states, then the tensors that the layer leaves in its arguments.

        With `basis` the hidden states go in as that makes them.
        """
        args, kwargs = copy.deepcopy(self.call)
        out = self.layer(self.hidden if basis is None else basis(self.hidden), *args, **kwargs)
        return [hidden_states(out), *_left_in((*args, *kwargs.values()))]

    def reference(self) -> Reference:
        """Return what the layer computes now, for comparing."""
        return Reference(self, self.run())


@dataclass(frozen=True)
class Reference:
    """The output of a layer before it is changed."""

    trial: Trial
    outputs: list[torch.Tensor]

    def divergence(self, basis: Basis | None = None) -> float:
        """Return how far the layer's output is now from what it was: ‖Δ‖ ∕ ‖f(x) − x‖, the change relative to

        what the layer adds to its input; of further outputs relative to themselves. The largest one. With `basis` the
        layer now takes and gives hidden states as that makes them.
        """
        found = 0.0
        added = (self.outputs[0] - self.trial.hidden, *self.outputs[1:])
        before = [self.outputs[0] if basis is None else basis(self.outputs[0]), *self.outputs[1:]]
        for was, scale, now in zip(before, added, self.trial.run(basis), strict=True):
            found = max(found, relative_change(now, was, scale))
        return found


def as_float32(call: Call, device: torch.device) -> Call:
    """Return a call with its floating tensors, at any depth, in float32."""
    args, kwargs = call
    return tuple(_float32(value, device) for value in args), {k: _float32(v, device) for k, v in kwargs.items()}


def _float32(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, torch.float32) if value.is_floating_point() else value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_float32(each, device) for each in value)
    if type(value) is dict:
        return {key: _float32(each, device) for key, each in value.items()}
    return value


def _left_in(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, dict | list):
            yield from _tensors(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


def place(x: torch.Tensor) -> Place:
    """Return where a tensor lies, the same for all views of all of it."""
    return x.untyped_storage()._cdata, int(x.storage_offset()), x.numel()


@contextmanager
def outputs_changed(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let a module give `change` of its output for a while."""
    handle = module.register_forward_hook(lambda module, inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def inputs_changed(modules: Sequence[nn.Module], change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let modules take `change` of their input for a while."""
    handles = [m.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]), *inputs[1:])) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inputs_of(trial: Trial, module: nn.Module) -> torch.Tensor:
    """Return what enters a module first when the layer runs, [batch · length, columns]."""
    found: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    try:
        trial.run()
    finally:
        handle.remove()
    return found[0].reshape(-1, found[0].shape[-1])
