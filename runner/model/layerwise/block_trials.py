"""Running the block around some linears of a layer, to see what rounding those linears does to what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.model.layerwise.layer_probes import hidden_states
from runner.model.layerwise.layer_trials import Trial
from runner.model.layerwise.linear import is_conv1d

Round = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rounding:
    """How a linear will be stored and computed: what becomes of its weight [out, in] and of its inputs [..., in]."""

    weight: Round
    inputs: Round | None = None


class BlockTrial:
    """The smallest module around some linears with one input, and what it is called with in `trials`.

    A linear alone is its own block. Tokens count by the inverse square of their size in the layer's output: the next
    norm divides by it, and the few tokens whose hidden states are huge would decide everything otherwise.
    """

    def __init__(self, trials: Sequence[Trial], linears: Mapping[str, Rounding]) -> None:
        layer = trials[0].layer
        self.linears = {layer.get_submodule(name): rounding for name, rounding in linears.items()}
        self.block = layer.get_submodule(common_module(list(linears)))
        ran = [_call(trial, self.block) for trial in trials]
        self.calls = [call for call, _ in ran]
        self.tokens = [out.float().square().sum(-1).clamp_min(1e-12).rsqrt().reshape(-1, 1) for _, out in ran]
        self.moment = self._moment()
        if self.moment is not None:
            [weight] = self._weights()
            self.energy = _energy(weight, self.moment)
            return
        self.outputs = [self._run(call) for call in self.calls]
        self.energy = self._size(self.outputs)

    def error(self, scales: torch.Tensor | None) -> float:
        """Return the squared error of the block's output, relative to its own square, when the linears are rounded

        after their columns were multiplied by `scales` [columns] and their inputs divided by them.
        """
        if self.moment is not None:
            [weight], [rounding] = self._weights(), self.linears.values()
            rounded = rounding.weight(weight if scales is None else weight * scales)
            change = (rounded if scales is None else rounded / scales) - weight
            return _energy(change, self.moment) / self.energy if self.energy > 0 else 0.0
        kept = {module: module.get_parameter("weight").data.clone() for module in self.linears}
        handles = []
        try:
            for module, rounding in self.linears.items():
                weight = module.get_parameter("weight").data
                rows = weight.T if is_conv1d(module) else weight
                rows.copy_(rounding.weight(rows if scales is None else rows * scales))
                handles.append(module.register_forward_pre_hook(_inputs(scales, rounding.inputs)))
            changed = [self._run(call) - out for call, out in zip(self.calls, self.outputs, strict=True)]
        finally:
            for handle in handles:
                handle.remove()
            for module, weight in kept.items():
                module.get_parameter("weight").data.copy_(weight)
        return self._size(changed) / self.energy if self.energy > 0 else 0.0

    def _size(self, outputs: Sequence[torch.Tensor]) -> float:
        """Return the sum of squares of outputs of the block, one for each trial, with tokens weighed."""
        flat = (out.reshape(-1, out.shape[-1]) for out in outputs)
        return sum(float((y * weigh).double().square().sum()) for y, weigh in zip(flat, self.tokens, strict=True))

    def _weights(self) -> list[torch.Tensor]:
        weights = [(module, module.get_parameter("weight").data) for module in self.linears]
        return [weight.T if is_conv1d(module) else weight for module, weight in weights]

    def _moment(self) -> torch.Tensor | None:
        """Return XᵀX of the inputs of a linear alone, tokens weighed: its error takes fewer operations so.

        None for several linears, for one whose inputs are rounded, and for fewer tokens than columns.
        """
        if len(self.linears) > 1 or any(rounding.inputs is not None for rounding in self.linears.values()):
            return None
        inputs = [args[0].reshape(-1, args[0].shape[-1]) for args, _ in self.calls]
        if sum(map(len, inputs)) <= inputs[0].shape[1]:
            return None
        moment = torch.zeros(inputs[0].shape[1], inputs[0].shape[1], device=inputs[0].device)
        for each, weigh in zip(inputs, self.tokens, strict=True):
            weighed = each * weigh
            moment.addmm_(weighed.T, weighed)
        return moment

    def _run(self, call: tuple[Any, Any]) -> torch.Tensor:
        args, kwargs = copy.copy(call[0]), _own_states(call[1])
        return hidden_states(self.block(*args, **kwargs))


def _energy(weight: torch.Tensor, moment: torch.Tensor) -> float:
    """Return ‖W Xᵀ‖², tr(W M Wᵀ), of a weight [out, columns]."""
    return float(((weight @ moment) * weight).sum(dtype=torch.float64))


def common_module(names: Sequence[str]) -> str:
    """Return the name of the smallest module that holds all of `names`; of one name itself."""
    parts = [name.split(".") for name in names]
    if len(parts) == 1:
        return names[0]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _call(trial: Trial, block: nn.Module) -> tuple[tuple[Any, Any], torch.Tensor]:
    """Return the first call of a block when its layer runs, and what the layer gives."""
    found: list[tuple[Any, Any]] = []
    handle = block.register_forward_pre_hook(
        lambda module, args, kwargs: found.append((args, _own_states(kwargs))), with_kwargs=True
    )
    try:
        out = trial.run()[0]
    finally:
        handle.remove()
    return found[0], out


def _own_states(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments with copies of what a block may write to."""
    return {key: copy.copy(value) if isinstance(value, dict | list) else value for key, value in kwargs.items()}


def _inputs(scales: torch.Tensor | None, rounded: Round | None) -> Callable[[nn.Module, Any], Any]:
    def hook(module: nn.Module, inputs: Any) -> Any:
        given = inputs[0] if scales is None else inputs[0] / scales
        return (given if rounded is None else rounded(given), *inputs[1:])

    return hook
