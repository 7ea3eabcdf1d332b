"""One decoder layer with gradients: what it makes of its input, compared with what the unchanged layer made of its own.

The error of a token is relative to its own hidden state, because the next layer normalizes it: a few tokens have states
a thousand times as large as others, and what bf16 rounds there would drown out every other error.

Its intermediates are kept for one batch of windows at a time, those of the stream, so that memory is that of one layer
and one batch whatever the length of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from runner.model.checkpoint.quantization.scheme import Numbers
from runner.model.layerwise.activation_rounding import round_inputs
from runner.model.layerwise.forward_modes import Lane, Span, forward
from runner.model.layerwise.linear import is_conv1d


class LayerBlock:
    """The layer of a lane, whose outputs are to be `target`; meets `runner.model.layerwise.method.Block`.

    `linears` are its linear modules by their names in the checkpoint. `close` leaves the layer without gradients and
    hooks.
    """

    def __init__(
        self,
        index: int,
        lane: Lane,
        target: Callable[[int, int], torch.Tensor],
        spans: Sequence[Span],
        linears: Mapping[str, nn.Module],
    ) -> None:
        self._index, self._lane, self._target, self._spans = index, lane, target, spans
        self._linears = linears
        self._handles: list[Any] = []
        self._scale = 0.0  # of the loss whose gradients are computed: keeps them in the range of any type

    @property
    def index(self) -> int:
        return self._index

    @property
    def batches(self) -> int:
        return len(self._spans)

    def parameter(self, name: str) -> torch.Tensor:
        weight = self._linears[name].get_parameter("weight").detach()
        return weight.T if is_conv1d(self._linears[name]) else weight

    def round_inputs(self, name: str, numbers: Numbers, scale: torch.Tensor | None = None) -> None:
        def hook(module: nn.Module, inputs: Any) -> Any:
            given = inputs[0]
            rounded = round_inputs(given.detach(), numbers, scale)
            return (rounded + (given - given.detach()), *inputs[1:])  # a zero that has the gradient of one

        self._handles.append(self._linears[name].register_forward_pre_hook(hook))

    def loss(self, batches: Sequence[int]) -> float:
        errors = [self._difference(batch).square().sum(-1) for batch in batches]
        return float(torch.cat([error.flatten() for error in errors]).mean(dtype=torch.float64))

    def gradients(self, batches: Sequence[int]) -> dict[str, torch.Tensor]:
        weights = {name: module.get_parameter("weight") for name, module in self._linears.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
            weight.grad = None
        for batch in batches:
            with torch.enable_grad():
                loss = self._difference(batch).square().sum()
                if not self._scale:
                    self._scale = 1.0 / max(float(loss.detach()) ** 0.5, torch.finfo(torch.float32).tiny)
                (loss * self._scale).backward()
        found = {}
        for name, weight in weights.items():
            gradient, weight.grad = weight.grad, None
            if gradient is None:
                gradient = torch.zeros_like(weight)
            found[name] = gradient.T if is_conv1d(self._linears[name]) else gradient
        return found

    def close(self) -> None:
        for module in self._linears.values():
            module.get_parameter("weight").requires_grad_(False)
        for handle in self._handles:
            handle.remove()

    def _difference(self, batch: int) -> torch.Tensor:
        """Return what the layer makes of a batch less what it should, of each token in shares of that token's norm."""
        span = self._spans[batch]
        target = self._target(*span).float()
        size = target.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return (forward(self._lane, span).float() - target).div_(size)
