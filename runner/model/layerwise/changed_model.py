"""A model in memory as a whole: its divergence from itself with a few weights changed, and gradients of its outputs.

It runs in float32: the divergences of small changes would drown in the rounding of a half type. What enters each layer
of the unchanged model is kept on disk, so that a change in one layer runs only that layer and those after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from runner.errors import Diagnostic, RecipeError
from runner.model.layerwise.final_hidden import position_chunks
from runner.model.layerwise.forward_modes import Span, forward
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.linear import is_conv1d
from runner.model.layerwise.streamed_model import StreamedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


class ChangedModel:
    """The checkpoint in `folder` on token windows `ids` [windows, length]; `scratch` holds what enters its layers.

    Raises RecipeError (R816) where its layers hand one another more than hidden states.
    """

    def __init__(self, folder: Path, device: str, ids: torch.Tensor, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.streamed = StreamedModel(folder, device, torch.float32)
        self.linears = self.streamed.linear_names()
        self.flow = HiddenStates(self.streamed, ids, scratch)
        with torch.no_grad():
            self.flow.begin(0, [])
            if self.flow.has_state():
                what = f"the layers of {type(self.streamed.model).__name__} hand one another keys and values"
                message = f"{what}: none can be run by itself"
                raise RecipeError([Diagnostic("R816", message, "use `measure: output_error`", path=("measure",))])
            for index in range(len(self.streamed)):
                self.streamed.load(index)
                lane = self.flow.lane(0, index, self.streamed.layers[index])
                for span in self.flow.spans:
                    lane.write(span[0], forward(lane, span))
            self.streamed.load_rest()

    def divergence(self, layer: int, weights: Mapping[str, torch.Tensor]) -> float:
        """Return KL(model ‖ changed model) in nats per predicted token, with other weights [out, in] in one layer.

        Weights are by the names that modules have in the checkpoint.
        """
        total = torch.zeros((), dtype=torch.float64)
        vocabulary, length = self.streamed.vocabulary_size, self.flow.length
        with torch.no_grad(), self._changed(weights):
            for span in self.flow.spans:
                before = self.flow.file(0, len(self.streamed)).read(*span)
                after = self._from(layer, self.flow.file(0, layer).read(*span), span)
                for keep in position_chunks(length, 2 * (span[1] - span[0]), vocabulary):
                    p = self.streamed.logits(before, keep).log_softmax(-1)
                    q = self.streamed.logits(after, keep).log_softmax(-1)
                    total += functional.kl_div(q, p, log_target=True, reduction="sum").double().cpu()
        return float(total) / (self.flow.windows * (length - 1))

    def output_gradients(
        self, names: Collection[str], seed: int, done: Callable[[int], None]
    ) -> dict[str, torch.Tensor]:
        """Return γ float64 [out] of linears by name: the squared gradient of each output, a mean over predicted tokens.

        It is the gradient of the negative log-likelihood of tokens drawn from the model's own predictions, by `seed`,
        so that γ is the diagonal of the Fisher information. `done` is called with the number of windows so far.
        """
        sums: dict[str, torch.Tensor] = {}
        hooks = []
        for name in sorted(names):
            module = self.streamed.model.get_submodule(self.linears[name])
            hooks.append(module.register_forward_hook(_adding(sums, name)))
        draw = torch.Generator().manual_seed(seed % 2**63)
        try:
            for span in self.flow.spans:
                self._backward(span, draw)
                done(span[1])
        finally:
            for hook in hooks:
                hook.remove()
        tokens = self.flow.windows * (self.flow.length - 1)
        return {name: total / tokens for name, total in sums.items()}

    def _backward(self, span: Span, draw: torch.Generator) -> None:
        """Run back the loss of drawn tokens; logits are there for a few positions at a time."""
        with torch.enable_grad():
            left = self._from(0, self.flow.file(0, 0).read(*span).requires_grad_(True), span)
            leaf = left.detach().requires_grad_(True)
            for keep in position_chunks(self.flow.length, 4 * (span[1] - span[0]), self.streamed.vocabulary_size):
                logits = self.streamed.logits(leaf, keep).flatten(0, 1)
                drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=draw)[:, 0]
                functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()
            left.backward(leaf.grad)

    def _from(self, layer: int, hidden: torch.Tensor, span: Span) -> torch.Tensor:
        """Return what leaves the last layer when `hidden` enters `layer`."""
        for index in range(layer, len(self.streamed)):
            lane = self.flow.lane(0, index, self.streamed.layers[index])
            hidden = forward(replace(lane, read=_returning(hidden)), span)
        return hidden

    @contextmanager
    def _changed(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        modules = {name: self.streamed.model.get_submodule(self.linears[name]) for name in weights}
        kept = {name: _weight(module).clone() for name, module in modules.items()}
        try:
            for name, module in modules.items():
                _weight(module).copy_(weights[name].T if is_conv1d(module) else weights[name])
            yield
        finally:
            for name, module in modules.items():
                _weight(module).copy_(kept[name])


def _returning(hidden: torch.Tensor) -> Callable[[int, int], torch.Tensor]:
    return lambda start, stop: hidden


def _adding(sums: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    """Return a forward hook that adds the squared gradient of the module's output to `sums`."""

    def add(gradient: torch.Tensor) -> None:
        squares = gradient.reshape(-1, gradient.shape[-1]).square().sum(0, dtype=torch.float64)
        sums[name] = sums[name] + squares if name in sums else squares

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(add)

    return hook


def _weight(module: nn.Module) -> torch.Tensor:
    weight: torch.Tensor = module.get_parameter("weight").data
    return weight
