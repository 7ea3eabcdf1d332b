"""Decoder layers for a method that looks at what calibration data makes of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from runner.errors import Diagnostic, RecipeError
from runner.model.layerwise import adapter, block_attention, forward_modes, progress_file
from runner.model.layerwise.apply_method import dense, transform_together
from runner.model.layerwise.dtypes import holds
from runner.model.layerwise.expert_stream import ExpertsStandIn, MixtureRun
from runner.model.layerwise.flowing_layers import FlowingLayers, Mode, begin_flow
from runner.model.layerwise.forward_modes import Lane, LayerRun
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.layer_block import LayerBlock
from runner.model.layerwise.linear import is_conv1d, is_linear
from runner.model.layerwise.memory_budget import suspend_limit, suspended_bytes, widest
from runner.model.layerwise.method import Method, Transformed
from runner.model.layerwise.paired_lanes import paired_lanes
from runner.model.layerwise.partial_sums import PartialSums
from runner.model.layerwise.process_group import ALONE, ProcessGroup
from runner.model.layerwise.statistics import largest
from runner.model.layerwise.stream_run import ExpertSink, StreamInputs, StreamRun
from runner.model.layerwise.streamed_model import StreamedModel, dense_copy
from runner.system import heap


class Calibrated(FlowingLayers):
    """Layers for a method that looks at calibration inputs. Each process of `group` runs batches of its own."""

    def __init__(self, inputs: StreamInputs, method: Method, group: ProcessGroup = ALONE) -> None:
        if inputs.ids is None:
            raise ValueError("the method needs calibration data")
        super().__init__(StreamedModel(inputs.folder, inputs.device), inputs.ids)
        self.inputs, self.method, self.group = inputs, method, group
        block_attention.use_blocks(self.streamed.model, self.streamed.device)
        self.experts = [self.streamed.separate_experts()]
        self.other: StreamedModel | None = None
        self.paired = paired_lanes(
            method.statistics,
            method.compared_every,
            learns=method.block is not None,
            has_experts=bool(self.experts[0]),
        )
        if self.paired.lanes == 2 and inputs.original is not None:
            self.other = StreamedModel(inputs.original, inputs.device, self.streamed.dtype)
            block_attention.use_blocks(self.other.model, self.other.device)
            self.experts.append(self.other.separate_experts())
        self.run_layer = self._choose_mode()

    def begin(self, progress: progress_file.Progress, run: StreamRun) -> progress_file.Progress:
        self.flow = HiddenStates(
            self.streamed, self.ids, run.scratch, self.paired.lanes, self.group, self.paired.every, self.inputs.images
        )
        progress = begin_flow(self.flow, progress, run, mode_of(self.method))
        if self.method.block is not None and self.flow.has_state():
            message = f"{type(self.streamed.model).__name__} has layers that hand one another keys and values"
            raise RecipeError(
                [Diagnostic("R632", f"{message}: they cannot be learned one at a time", "use `quantize.gptq`")]
            )
        return progress

    def run(self, index: int, experts: ExpertSink) -> dict[str, Transformed]:
        flow, streamed = self.flow, self.streamed
        layer = streamed.layers[index]
        linears = {name: module for name, module in layer.named_modules() if is_linear(module)}
        streamed.load(index)
        lanes = [flow.lane(0, index, layer)]
        if flow.lanes == 2:
            lanes.append(flow.lane(1, index, dense_copy(layer) if self.other is None else self.other.load(index)))
        mixtures = self._mixtures(index, lanes)
        groups = forward_modes.find_groups(layer, list(linears), *flow.scout(index), alone=mixtures)
        if unreached := set(mixtures) - {names[0] for names in groups}:
            raise RuntimeError(f"two tokens did not reach the experts `{min(unreached)}`")
        changed: dict[str, Transformed] = {}
        collectors: dict[int, PartialSums] = {}
        branches: list[Any] = []
        tops: dict[str, torch.Tensor] = {}

        def collect(group: int, inputs: tuple[Any, ...]) -> None:
            if groups[group][0] in mixtures:
                mixtures[groups[group][0]].collect(inputs)
                return
            if group not in collectors:
                columns, device = inputs[0].shape[-1], inputs[0].device
                collectors[group] = PartialSums(
                    self.method.statistics, columns, device, len(flow.all_spans), self.group, self.paired.counted
                )
            collectors[group].add(*inputs)

        def top(name: str) -> torch.Tensor:
            if name not in tops:
                tops[name] = largest(streamed.reader.read_module_weight(name).to(streamed.device))
            return tops[name]

        def solve_group(group: int) -> None:
            if mixture := mixtures.get(groups[group][0]):
                ends = last and group == len(groups) - 1
                mixture.solve(self.method, lambda _, done: experts(index, done), outputs=not ends)
                heap.trim()
                return
            members = {self._stored(index, name): linears[name] for name in groups[group]}
            weights = {name: self._weight(name, module) for name, module in members.items()}
            tops.update({name: largest(weight) for name, weight in weights.items() if name in self.method.shares_scale})
            collected = collectors.pop(group, None)  # a process without batches has none
            seen = collected.finish() if collected is not None and self.group.is_first else None
            done = transform_together(self.method, weights, seen, top, self.group)
            for name, result in done.items():
                branches.extend(install(members[name], result, weights[name].dtype))
            changed.update(done)
            if flow.lanes > 1:
                heap.trim()  # what forwards left: two flows of the demo model took 1.7 GB without it, 1.3 with it

        last = index == len(streamed) - 1
        learns = self.method.block is not None
        # The output of a layer that goes on to be learned is computed once it was, and compared with the other's.
        outputs = {1} if learns else set() if last else set(range(len(lanes)))
        heads = [names[0] for names in groups]
        self.run_layer(LayerRun(lanes, flow.spans, heads, collect, solve_group, frozenset(outputs), flow.paired))
        if learns:
            del lanes[1:]
            changed = self._learn(index, lanes[0], {self._stored(index, n): m for n, m in linears.items()}, changed)
        for each in (*branches, *mixtures.values()):
            each.remove()
        streamed.free(index)
        if self.other is not None:
            self.other.free(index)
        return changed

    def _learn(
        self, index: int, lane: Lane, linears: Mapping[str, nn.Module], changed: dict[str, Transformed]
    ) -> dict[str, Transformed]:
        """Let the method go on with the layer as a whole; then run it once more for the input of the next one."""
        if self.method.block is None:
            return changed
        heap.trim()
        flow = self.flow
        learned = {name: linears[name] for name in changed}
        block = LayerBlock(index, lane, flow.file(1, index + 1).read, flow.spans, learned)
        try:
            found = dict(self.method.block(block, changed))
        finally:
            block.close()
        for name, result in found.items():
            install(linears[name], result, self.streamed.reader.dtype(f"{name}.weight"))
        if index < len(self.streamed) - 1:
            forward_modes.finish(lane, flow.spans)
        return found

    def _mixtures(self, index: int, lanes: list[Lane]) -> dict[str, MixtureRun]:
        """The experts of a layer in all lanes, by the name of their module in the layer."""
        found: dict[str, MixtureRun] = {}
        for number, own in enumerate(self.experts[0].get(index, ())):
            name = own.mixture.name.removeprefix(f"{self.streamed.layer_name(index)}.")
            versions = [own]
            for lane in lanes[1:]:
                other = own if self.other is None else self.experts[1][index][number]
                stand_in = lane.layer.get_submodule(name)
                versions.append(replace(other, stand_in=cast(ExpertsStandIn, stand_in)))
            found[name] = MixtureRun(versions, self.flow.token_ranges(), self.flow.folder)
        return found

    def model_names(self) -> dict[str, str]:
        """Name in the checkpoint → name in the model, of every linear of the decoder layers."""
        return self.streamed.linear_names()

    def _stored(self, index: int, name: str) -> str:
        return self.streamed.stored_module(f"{self.streamed.layer_name(index)}.{name}")

    def _weight(self, name: str, module: nn.Module) -> torch.Tensor:
        """The weight [out, in] in the type it is stored in: what the forward rounded is not what is quantized."""
        reader, weight = self.streamed.reader, weight_of(module)
        stored = reader.dtype(f"{name}.weight")
        if holds(weight.dtype, stored):
            weight = weight.to(stored)
            return weight.T if is_conv1d(module) else weight
        weight = reader.read_module_weight(name).to(weight.device)
        return weight.T if is_conv1d(module) and not reader.is_packed(name) else weight

    def _choose_mode(self) -> Callable[[LayerRun], None]:
        if not self.method.sequential:
            return forward_modes.run_at_once
        tokens, value = -(-self.ids.numel() // self.group.count), self.streamed.dtype.itemsize
        width = self.inputs.facts.config.hidden_size
        one = suspended_bytes(tokens, width, widest(self.inputs.facts), value, 1)
        held = int(one * self.paired.forwards)
        limit = suspend_limit(device_bytes(self.streamed.device))
        return forward_modes.run_suspended if held <= limit else forward_modes.run_again

    def close(self) -> None:
        self.flow.drop(len(self.streamed))
        if self.other is not None:
            self.other.reader.close()


def mode_of(method: Method) -> Mode:
    """Return the context in which a method's layers are run: tensors of inference mode could not have gradients."""
    return torch.inference_mode if method.block is None else torch.no_grad


def install(module: nn.Module, result: Transformed, stored: torch.dtype) -> list[Any]:
    """Let a running module be as the readers of the result will see it; returns the hooks of what acts beside it."""
    if result.added is not None:
        a, b = result.added
        return [module.register_forward_hook(partial(adapter.lora_hook, a=a, b=b, scale=1.0))]
    new = dense(result, stored)
    weight_of(module).copy_(new.T if is_conv1d(module) else new)
    return []


def device_bytes(device: torch.device) -> int:
    """The memory of a GPU, 0 of a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def weight_of(module: nn.Module) -> torch.Tensor:
    weight: torch.Tensor = module.get_parameter("weight")
    return weight
