"""Layers for `engine.walk` whose units are scored: neurons, heads, groups of heads, channels of hidden states.

    for each decoder layer: run the calibration batches through it, noting what enters its output projections and its
    first linears ─► choose the units that stay ─► run a batch without the others: that is the layer's error

What flows on is the output of the original layer. The scores of a layer are on disk before its progress is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.contracts.facts import CheckpointFacts
from runner.model.architecture import units
from runner.model.architecture.units import FEED_FORWARD, GROUPS, HEADS, HIDDEN, Widths
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import forward_modes, unit_importance
from runner.model.layerwise.flowing_layers import FlowingLayers
from runner.model.layerwise.forward_modes import Lane, Span
from runner.model.layerwise.relative_change import relative_change
from runner.model.layerwise.stream_run import ExpertSink, StreamInputs
from runner.model.layerwise.streamed_model import StreamedModel

Scores = Mapping[str, torch.Tensor]  # axis → score of every unit, float32
Kept = Mapping[str, Sequence[int]]  # axis → the units that stay, in their order; axes that are not cut are absent


@dataclass(frozen=True)
class Scoring:
    """How units are scored, and how many stay.

    criterion    "activation", "magnitude" (norm of the weights that would go) or "random"
    aggregation  of activations over the tokens of a window: "mean" or "l2"
    before, after   the widths of the model and of the narrower one
    """

    criterion: str
    aggregation: str
    before: Widths
    after: Widths
    seed: int

    @property
    def axes(self) -> list[str]:
        """The axes that are cut."""
        return units.differing(self.before, self.after)

    def keep(self, scores: Scores) -> dict[str, list[int]]:
        """Return the units that stay in a layer of these scores, and with scores of HIDDEN the channels that do."""
        kept = {}
        for axis in (FEED_FORWARD, HIDDEN):
            if axis in self.axes and axis in scores:
                kept[axis] = unit_importance.top(scores[axis], self.after.of(axis))
        if HEADS in scores and (HEADS in self.axes or GROUPS in self.axes):
            groups, size = self.after.key_value_heads, self.after.group
            kept[HEADS], stay = unit_importance.top_heads(scores[HEADS], scores[GROUPS], groups, size)
            if GROUPS in self.axes:
                kept[GROUPS] = stay
        return kept


@dataclass(frozen=True)
class Scored:
    """What became of a layer: the units that stay, and what it loses: site → metrics.

    scores       of its units by the criterion, with those of channels that are chosen over all layers
    activations  the scores of units by their activations, whatever the criterion: the measure of what is lost
    """

    scores: Scores
    activations: Scores
    kept: Kept
    modules: Mapping[str, Mapping[str, float]]


class ScoredLayers(FlowingLayers):
    """The decoder layers of a checkpoint on their way through a scoring of their units."""

    def __init__(self, streamed: StreamedModel, inputs: StreamInputs, scoring: Scoring) -> None:
        if inputs.ids is None:
            raise ValueError("what a layer loses is measured on calibration data")
        super().__init__(streamed, inputs.ids)
        self.inputs, self.scoring = inputs, scoring
        self._modules = streamed.linear_names()

    def run(self, index: int, experts: ExpertSink) -> Scored:
        """Score the units of one layer; `experts` is not used: mixtures have none of these units."""
        layer = self.streamed.load(index)
        lane = self.flow.lane(0, index, layer)
        seen = self._activations(index, layer, lane)
        activations = {axis: squares.sqrt().float().cpu() for axis, squares in seen.items()}
        scores = {axis: score.float().cpu() for axis, score in self._scores(index, activations).items()}
        kept = self.scoring.keep({axis: score for axis, score in scores.items() if axis != HIDDEN})
        modules = {}
        for role, axis in (("o", HEADS), ("down", FEED_FORWARD)):
            if axis in kept:
                site, module = self._module(index, layer, role)
                error = self._error(lane, module, columns(kept[axis], self._channels(axis)))
                share = unit_importance.lost(activations[axis], kept[axis])
                modules[site] = {"error": error, "lost_importance": share}
        self.streamed.free(index)
        return Scored(scores, activations, kept, modules)

    def _activations(self, index: int, layer: nn.Module, lane: Lane) -> dict[str, torch.Tensor]:
        """Run every batch through the layer; return the score of units by what they give, squared, float64."""
        found: dict[str, torch.Tensor] = {}
        first = {}
        for role in ("q", "qkv", "gate", "gate_up"):
            if self._has(index, role):
                first[role] = self._module(index, layer, role)[1]
        watched = [
            (HEADS, self._module(index, layer, "o")[1]), (FEED_FORWARD, self._module(index, layer, "down")[1]),
            *((HIDDEN, module) for module in first.values()),
        ]  # fmt: skip

        def watch(axis: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                own = unit_importance.window_scores(inputs[0], self.scoring.aggregation, self._channels(axis))
                added = own.square().sum(0)
                found[axis] = found[axis] + added if axis in found else added

            return hook

        handles = [module.register_forward_pre_hook(watch(axis)) for axis, module in watched]
        last = index == len(self.streamed) - 1
        for span in self.flow.spans:
            out = forward_modes.forward(lane, span)
            if not last:
                lane.write(span[0], out)
        for handle in handles:
            handle.remove()
        return found

    def _scores(self, index: int, activations: Scores) -> dict[str, torch.Tensor]:
        """Return the score of every unit by the criterion."""
        scoring = self.scoring
        if scoring.criterion == "activation":
            return {**activations, GROUPS: torch.zeros(scoring.before.key_value_heads)}
        if scoring.criterion == "random":
            generator = torch.Generator().manual_seed(scoring.seed + index)
            return {axis: torch.rand(scoring.before.of(axis), generator=generator) for axis in units.AXES}
        facts = self.inputs.facts
        squares = weight_squares(self.streamed.reader, facts, facts.layer_tensors(index))
        return {axis: sums.sqrt() for axis, sums in squares.items()}

    def _error(self, lane: Lane, module: nn.Module, stay: torch.Tensor) -> float:
        """Return ‖f − f'‖ ∕ ‖f(x) − x‖ of the first batch, f' the layer with only these inputs of a linear."""
        span: Span = self.flow.spans[0]
        before, hidden = forward_modes.forward(lane, span), lane.read(*span)

        handle = module.register_forward_pre_hook(masking(stay))
        after = forward_modes.forward(lane, span)
        handle.remove()
        return relative_change(after, before, before.double() - hidden.double())

    def _channels(self, axis: str) -> int:
        return self.scoring.before.head_size if axis == HEADS else 1

    def _has(self, index: int, role: str) -> bool:
        return any(site.layer == index and site.role == role for site in self.inputs.facts.sites)

    def _module(self, index: int, layer: nn.Module, role: str) -> tuple[str, nn.Module]:
        """Return the site of a role in a layer by its name, and its module."""
        site = next(site for site in self.inputs.facts.sites if site.layer == index and site.role == role)
        inside = self._modules[site.name].removeprefix(f"{self.streamed.layer_name(index)}.")
        return site.name, layer.get_submodule(inside)


def weight_squares(reader: CheckpointReader, facts: CheckpointFacts, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return Σ w² over the weights of every unit in the tensors `names`, by axis, float64."""
    own = units.widths(facts)
    found = {axis: torch.zeros(own.of(axis), dtype=torch.float64) for axis in units.AXES}
    layouts = units.layouts(facts, units.AXES)
    for name in names:
        for dimension, blocks in enumerate(layouts.get(name, ())):
            if not blocks:
                continue
            squares = reader.read(name).double().square()
            rows = squares.movedim(dimension, 0).flatten(1).sum(1) if squares.ndim > 1 else squares
            begin = 0
            for block in blocks:
                end = begin + block.units * block.size
                found[block.axis] += rows[begin:end].view(block.units, block.size).sum(1)
                begin = end
    return found


def masking(stay: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """Return a hook that lets a module see the columns `stay` of its input alone, and zeros in the others."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        only = torch.zeros_like(inputs[0])
        only[..., stay] = inputs[0][..., stay]
        return (only, *inputs[1:])

    return hook


def columns(kept: Sequence[int], size: int) -> torch.Tensor:
    """Return the columns of units of `size` columns each."""
    return (torch.tensor(list(kept))[:, None] * size + torch.arange(size)).flatten()


def index_of(kept: Kept, blocks: Sequence[units.Block]) -> torch.Tensor:
    """Return the rows (or columns) that stay of a dimension that holds `blocks`."""
    begin, found = 0, []
    for block in blocks:
        stay: Any = kept.get(block.axis, range(block.units))
        found.append(begin + columns(list(stay), block.size))
        begin += block.units * block.size
    return torch.cat(found)
