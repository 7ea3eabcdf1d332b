"""Measuring the experts of a model: how many tokens each gets, how large its outputs are, how large its weights.

Of an expert j, with T_j the tokens routed to it, g_j its weight in the output of a token and f_j(x) its own output:

    tokens    |T_j|
    output    Σ_{T_j} g_j ‖f_j(x)‖, in units of the hidden states
    energy    Σ_{T_j} g_j² ‖f_j(x)‖²
    norm      ‖W_j‖, the Frobenius norm of all its weights

All is measured in the unchanged model, a layer and of its experts one in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from runner.contracts.mixtures import Mixture
from runner.model.checkpoint.placed_part import site_weight
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import block_attention, forward_modes, progress_file
from runner.model.layerwise.calibrated import device_bytes
from runner.model.layerwise.engine import walk
from runner.model.layerwise.expert_stream import ExpertLane, MixtureRun
from runner.model.layerwise.flowing_layers import FlowingLayers
from runner.model.layerwise.forward_modes import LayerRun
from runner.model.layerwise.memory_budget import suspend_limit, suspended_bytes, widest
from runner.model.layerwise.method import Results
from runner.model.layerwise.stream_run import ExpertSink, StreamInputs, StreamRun
from runner.model.layerwise.streamed_model import StreamedModel
from runner.system import heap

Usage = dict[str, dict[str, list[float]]]  # mixture → what is measured → a value for each of its experts
# Finds more of the experts of a mixture by what is measured of them, and by the tokens whose outputs `MixtureRun` has.
More = Callable[[Mixture, Mapping[str, Sequence[float]], MixtureRun], dict[str, list[float]]]


def measure(
    inputs: StreamInputs, run: StreamRun, mixtures: tuple[Mixture, ...] = (), more: More | None = None
) -> Results:
    """Return of every layer its number, and as "mixtures" the `Usage` of its experts.

    Without `inputs.ids` only the norms of `mixtures` are measured. What `more` finds of a mixture is added to its
    usage. An interrupted measurement goes on after its last finished layer.
    """
    if inputs.ids is None:
        return walk(_Weights(inputs, mixtures), _described, run)
    return walk(_Routed(inputs, inputs.ids, more), _described, run)


def _described(layer: int, usage: Usage) -> dict[str, Any]:
    return {"layer": layer, "modules": {}, "mixtures": usage}


class _Weights:
    """Layers of which weights alone are looked at."""

    def __init__(self, inputs: StreamInputs, mixtures: tuple[Mixture, ...]) -> None:
        self.inputs, self.mixtures = inputs, mixtures
        self.reader = CheckpointReader(inputs.folder)

    def begin(self, progress: progress_file.Progress, run: StreamRun) -> progress_file.Progress:
        return progress

    def run(self, index: int, experts: ExpertSink) -> Usage:
        sites = {site.name: site for site in self.inputs.facts.sites}
        found: Usage = {}
        for mixture in self.mixtures:
            if mixture.layer == index:
                found[mixture.name] = {"norm": [
                    _norm({name: site_weight(self.reader, sites[name]) for name in mixture.sites(expert)})
                    for expert in range(mixture.experts)
                ]}  # fmt: skip
        return found

    def finished(self, layer: int) -> list[str]:
        return []

    def drop(self, layer: int) -> None:
        """Nothing flows, so nothing is left behind."""

    def close(self) -> None:
        self.reader.close()


class _Routed(FlowingLayers):
    """Layers whose experts are measured with the tokens that are routed to them."""

    def __init__(self, inputs: StreamInputs, ids: torch.Tensor, more: More | None) -> None:
        super().__init__(StreamedModel(inputs.folder, inputs.device), ids)
        self.inputs, self.more = inputs, more
        block_attention.use_blocks(self.streamed.model, self.streamed.device)
        self.experts = self.streamed.separate_experts()

    def run(self, index: int, experts: ExpertSink) -> Usage:
        flow, streamed = self.flow, self.streamed
        layer = streamed.load(index)
        start = f"{streamed.layer_name(index)}."
        own = {each.mixture.name.removeprefix(start): each for each in self.experts.get(index, ())}
        runs = {name: MixtureRun([each], flow.token_ranges(), flow.folder) for name, each in own.items()}
        heads = [names[0] for names in forward_modes.find_groups(layer, [], *flow.scout(index), alone=runs)]
        found: Usage = {}

        def collect(group: int, inputs: tuple[Any, ...]) -> None:
            runs[heads[group]].collect(inputs)

        def solve(group: int) -> None:
            lane = own[heads[group]]
            found[lane.mixture.name] = usage = _measured(lane, runs[heads[group]])
            if self.more is not None:
                usage |= self.more(lane.mixture, usage, runs[heads[group]])
            heap.trim()

        lanes = [flow.lane(0, index, layer)]
        outputs = frozenset[int]() if index == len(streamed) - 1 else frozenset((0,))
        self._run(LayerRun(lanes, flow.spans, heads, collect, solve, outputs))
        for each in runs.values():
            each.remove()
        streamed.free(index)
        return found

    def _run(self, run: LayerRun) -> None:
        facts, value = self.inputs.facts, self.streamed.dtype.itemsize
        held = suspended_bytes(self.ids.numel(), facts.config.hidden_size, widest(facts), value, 1)
        suspends = held <= suspend_limit(device_bytes(self.streamed.device))
        (forward_modes.run_suspended if suspends else forward_modes.run_again)(run)


def _measured(lane: ExpertLane, run: MixtureRun) -> dict[str, list[float]]:
    """What is measured of the experts of a mixture, whose calls have been collected."""
    count = lane.mixture.experts
    found = {what: [0.0] * count for what in ("tokens", "output", "energy")}

    def watch(expert: int, out: torch.Tensor, share: torch.Tensor) -> None:
        sizes = share.double().cpu().abs() * out.double().cpu().norm(dim=-1)
        found["tokens"][expert] += len(sizes)
        found["output"][expert] += float(sizes.sum())
        found["energy"][expert] += float(sizes.square().sum())

    run.measure(watch)
    return {**found, "norm": [_norm(lane.weights(expert)) for expert in range(count)]}


def _norm(weights: Mapping[str, torch.Tensor]) -> float:
    return float(sum(weight.double().square().sum() for weight in weights.values()) ** 0.5)
