"""Layers for `engine.walk` that are rewritten: other weights, the same function, proved on the layer itself.

    for each decoder layer: run the calibration batches through it, noting how large each column of each linear's input
    gets ─► read it again in float32 ─► let the method rewrite it ─► compare its output with what it was ─► round

What flows on is the output of the original layer, which is that of the rewritten one but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.errors import StepFailed
from runner.model.layerwise import forward_modes
from runner.model.layerwise.channel_scalings import find_scalings
from runner.model.layerwise.flowing_layers import FlowingLayers
from runner.model.layerwise.forward_modes import Span
from runner.model.layerwise.layer_trials import Basis, Trial, as_float32
from runner.model.layerwise.linear import is_linear
from runner.model.layerwise.rewritable_layer import InputSizes, RewritableLayer
from runner.model.layerwise.stream_run import ExpertSink, StreamInputs
from runner.model.layerwise.streamed_model import StreamedModel
from runner.system import heap

_ROUNDING = 0.05  # a larger divergence comes from no rounding


@dataclass(frozen=True)
class Rewritten:
    """What became of a layer: `tensors` by their names in the checkpoint, in the types they are stored in.

    modules     site → what the method says of it
    divergence  of the layer's output from that of the original, in float32, before anything is rounded but norms
    rounding    the same once every tensor is rounded to the type it is stored in
    """

    tensors: Mapping[str, torch.Tensor]
    modules: Mapping[str, Mapping[str, float]]
    divergence: float
    rounding: float


Metrics = dict[str, dict[str, float]]  # by site
Rewrite = Callable[[RewritableLayer], Metrics]  # must keep the function
Finish = Callable[[RewritableLayer], Metrics]  # may change it; runs after the proof


@dataclass(frozen=True)
class RewriteMethod:
    """`rewrite` keeps what a layer computes, which is proved within `tolerance`; `finish` then need not.

    sample_tokens   tokens of the calibration data that trials run on, at least one batch
    basis           the basis in which rewritten layers take and give hidden states; None for that of the original
    """

    rewrite: Rewrite
    tolerance: float
    sample_tokens: int = 1
    finish: Finish | None = None
    basis: Basis | None = None


class RewritingLayers(FlowingLayers):
    """The decoder layers of a checkpoint on their way through a rewrite."""

    def __init__(self, streamed: StreamedModel, inputs: StreamInputs, method: RewriteMethod) -> None:
        if inputs.ids is None:
            raise ValueError("a rewrite runs layers on calibration data")
        super().__init__(streamed, inputs.ids)
        self.inputs, self.method = inputs, method

    def run(self, index: int, experts: ExpertSink) -> Rewritten:
        """Rewrite one layer; `experts` is not used: mixtures are not rewritten."""
        sizes = self._measure(index, self.streamed.load(index))
        if self.streamed.dtype != torch.float32:
            self.streamed.free(index)
            self.streamed.load(index, torch.float32)
        name, layer = self.streamed.layer_name(index), self.streamed.layers[index]
        trials = [self._trial(index, span) for span in self._sample()]
        scout = self._scout(index)
        found = find_scalings(scout)
        rewritable = RewritableLayer(name, layer, trials, scout, found, sizes, self._stored(index))
        heap.trim()
        before = trials[0].reference()
        modules = self.method.rewrite(rewritable)
        divergence = before.divergence(self.method.basis)
        require(f"`{name}`", divergence, self.method.tolerance)
        if self.method.finish is not None:
            for site, metrics in self.method.finish(rewritable).items():
                modules.setdefault(site, {}).update(metrics)
        tensors = dict(self._rounded(rewritable))
        rounding = before.divergence(self.method.basis)
        self.streamed.free(index)
        return Rewritten(tensors, modules, divergence, rounding)

    def _measure(self, index: int, layer: nn.Module) -> dict[str, InputSizes]:
        """Run every batch through the original layer; return how large its linears' inputs get."""
        linears = [name for name, module in layer.named_modules() if is_linear(module)]
        groups = forward_modes.find_groups(layer, linears, *self.flow.scout(index))
        found: dict[str, InputSizes] = {}

        def watch(head: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                if head not in found:
                    found[head] = InputSizes.empty(inputs[0].shape[-1], inputs[0].device)
                found[head].add(inputs[0])

            return hook

        handles = [layer.get_submodule(names[0]).register_forward_pre_hook(watch(names[0])) for names in groups]
        lane = self.flow.lane(0, index, layer)
        last = index == len(self.streamed) - 1
        for span in self.flow.spans:
            out = forward_modes.forward(lane, span)
            if not last:
                lane.write(span[0], out)
        for handle in handles:
            handle.remove()
        return {name: found[names[0]] for names in groups for name in names if names[0] in found}

    def _sample(self) -> list[Span]:
        """Return batches evenly spread over the data that hold `sample_tokens` tokens, or all there are."""
        spans = self.flow.spans
        per_batch = max(1, spans[0][1] - spans[0][0]) * self.flow.length
        count = min(len(spans), max(1, -(-self.method.sample_tokens // per_batch)))
        return [spans[number * len(spans) // count] for number in range(count)]

    def _trial(self, index: int, span: Span) -> Trial:
        lane = self.flow.lane(0, index, self.streamed.layers[index])
        return Trial(lane.layer, lane.read(*span).float(), as_float32(lane.call(span), self.streamed.device))

    def _scout(self, index: int) -> Trial:
        hidden, args, kwargs = self.flow.scout(index)
        return Trial(self.streamed.layers[index], hidden.float(), as_float32((args, kwargs), self.streamed.device))

    def _stored(self, index: int) -> Callable[[str], tuple[str, torch.dtype] | None]:
        prefix, streamed = self.streamed.layer_name(index), self.streamed

        def stored(parameter: str) -> tuple[str, torch.dtype] | None:
            name = f"{prefix}.{parameter}"
            found = streamed.names.stored.get(name)
            if not found or streamed.tied_to(name):
                return None
            return found[0], streamed.reader.dtype(found[0])

        return stored

    def _rounded(self, rewritable: RewritableLayer) -> Iterator[tuple[str, torch.Tensor]]:
        """Round every changed parameter to the type that it is stored in, in the layer too."""
        for parameter in sorted(rewritable.changed):
            where = rewritable.stored(parameter)
            if where is None:
                raise ValueError(f"`{parameter}` has no tensor of its own")
            name, dtype = where
            value = rewritable.layer.get_parameter(parameter).data
            rounded = value.to(dtype)
            if not bool(rounded.isfinite().all()):
                raise StepFailed(
                    f"`{name}` is stored as {str(dtype).removeprefix('torch.')}, which does not hold its new values",
                    "use a checkpoint in bfloat16 or float32",
                )
            value.copy_(rounded)
            yield name, rounded.cpu()


def require(what: str, divergence: float, tolerance: float) -> None:
    """Raise StepFailed where what was rewritten is farther from the original than `tolerance`."""
    if not divergence <= tolerance:
        raise StepFailed(
            f"rewritten, {what} would not compute what the original does: the outputs differ by a share of "
            f"{divergence:.2g}, more than `tolerance` {tolerance:g}",
            "leave the step out: this architecture cannot be rewritten so"
            if divergence > _ROUNDING
            else "raise `tolerance` if that is acceptable, or leave the step out",
        )
