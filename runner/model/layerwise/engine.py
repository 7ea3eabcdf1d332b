"""The layer stream: a checkpoint goes through a layer-wise method one decoder layer at a time.

    for each decoder layer: read it ─► run the calibration batches up to each group of linears, collecting what the
    method asked for ─► transform the group ─► run on with the new weights ─► write the layer ─► note how far we are

A step killed at any moment goes on at its first unfinished layer and ends with the same bytes: finished layers are on
disk as parts, and what enters the next layer is in a file whose digest is checked before it is trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic, RecipeError
from runner.model.checkpoint.placed_part import site_weight
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import adapter, block_attention, forward_modes, progress_file
from runner.model.layerwise.apply_method import dense, transform_group
from runner.model.layerwise.dtypes import holds
from runner.model.layerwise.expert_stream import ExpertsStandIn, MixtureRun
from runner.model.layerwise.forward_modes import Lane, LayerRun
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.layer_block import LayerBlock
from runner.model.layerwise.linear import is_conv1d, is_linear
from runner.model.layerwise.memory_budget import suspend_limit, suspended_bytes, widest
from runner.model.layerwise.method import Method, Results, Statistics, Transformed
from runner.model.layerwise.statistics import largest
from runner.model.layerwise.statistics_collector import StatisticsCollector
from runner.model.layerwise.stream_run import StreamRun
from runner.model.layerwise.streamed_model import StreamedModel, dense_copy
from runner.system import heap

Sink = Callable[[int, Mapping[str, Transformed]], dict[str, Any]]
ExpertSink = Callable[[int, Mapping[str, Transformed]], None]  # as Sink, of one expert of a layer


@dataclass(frozen=True)
class StreamInputs:
    """The checkpoint that goes through a stream, and where it is computed.

    facts     of the checkpoint in `folder`
    ids       calibration windows [windows, length], int64; None for a method that collects no statistics
    original  folder of the unchanged model that "cross" compares with; None: the checkpoint itself
    """

    folder: Path
    facts: CheckpointFacts
    device: str = "cpu"
    ids: torch.Tensor | None = None
    original: Path | None = None


def transform(
    inputs: StreamInputs, method: Method, sink: Sink, run: StreamRun, experts: ExpertSink | None = None
) -> Results:
    """Run a layer-wise method over a checkpoint. `sink` gets the changed modules of each layer, by their names in the

    checkpoint, puts the layer on disk, and returns what the record says of it; all of that is the result. `experts`
    gets those of each expert before that, as soon as they are there. Finished layers of an interrupted run are not run
    again.
    """
    return walk(open_layers(inputs, method), sink, run, experts, mode_of(method))


def open_layers(inputs: StreamInputs, method: Method) -> WeightsOnly | Calibrated:
    """The decoder layers of a checkpoint, ready for `walk`."""
    plain = method.statistics == "none" and method.block is None
    return WeightsOnly(inputs, method) if plain else Calibrated(inputs, method)


Mode = Callable[[], AbstractContextManager[Any]]
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Layers(Protocol[T_co]):
    """The decoder layers of a checkpoint on their way through a method: `run` changes one and returns what changed."""

    inputs: StreamInputs

    def begin(self, progress: progress_file.Progress, run: StreamRun) -> progress_file.Progress:
        """Get ready for the first unfinished layer; return the progress that can be trusted."""
        ...

    def run(self, index: int, experts: ExpertSink) -> T_co: ...

    def finished(self, layer: int) -> list[str]:
        """Return the digests of what enters a layer, once the one before it is finished."""
        ...

    def drop(self, layer: int) -> None:
        """Forget what entered a layer."""
        ...

    def close(self) -> None: ...


def walk(
    layers: Layers[T],
    sink: Callable[[int, T], dict[str, Any]],
    run: StreamRun,
    experts: ExpertSink | None = None,
    mode: Mode = torch.inference_mode,
) -> Results:
    """Run `layers` one after another from the first unfinished one, as `transform` does, in the context `mode`."""
    count = layers.inputs.facts.layer_count
    progress = layers.begin(progress_file.load(run.progress, count), run)
    heap.trim()  # what the making of the model left
    for done, result in enumerate(progress.results, start=1):  # an interrupted run may have had other limits
        run.hooks.judge(done, count, layer_error(result))
    with mode():
        for index in range(progress.layer, count):
            run.hooks.safe_point()
            started = time.perf_counter()
            result = sink(index, layers.run(index, experts or _no_experts))
            progress.results.append(result)
            progress.layer, progress.hidden = index + 1, layers.finished(index + 1)
            progress.save(run.progress)
            layers.drop(index)
            heap.trim()
            before = mean(result, "error_before")
            run.hooks.emit(
                "layer", layer=index + 1, layers=count, seconds=time.perf_counter() - started,
                error=mean(result, "error"), **({} if before is None else {"error_before": before}),
            )  # fmt: skip
            _report_few(result, run)
            run.hooks.judge(index + 1, count, layer_error(result))
    layers.close()
    return progress.results


class WeightsOnly:
    """Layers for a method that needs no calibration: weights are read one linear at a time, nothing is run."""

    def __init__(self, inputs: StreamInputs, method: Method) -> None:
        self.inputs, self.method = inputs, method
        self.reader = CheckpointReader(inputs.folder)
        self.largest: dict[str, torch.Tensor] = {}

    def begin(self, progress: progress_file.Progress, run: StreamRun) -> progress_file.Progress:
        return progress

    def run(self, index: int, experts: ExpertSink) -> dict[str, Transformed]:
        changed: dict[str, Transformed] = {}
        for linear in self.inputs.facts.sites:
            if linear.layer != index or linear.name not in self.method.options:
                continue
            weight = site_weight(self.reader, linear).to(self.inputs.device)
            if linear.name in self.method.shares_scale:
                self.largest[linear.name] = largest(weight)
            done = transform_group(self.method, {linear.name: weight}, Statistics(), self._largest)
            if linear.is_expert:
                experts(index, done)
            else:
                changed |= done
        self.largest.clear()
        return changed

    def _largest(self, name: str) -> torch.Tensor:
        if name not in self.largest:
            self.largest[name] = largest(self.reader.read_module_weight(name).to(self.inputs.device))
        return self.largest[name]

    def finished(self, layer: int) -> list[str]:
        return []

    def drop(self, layer: int) -> None:
        """Nothing flows, so nothing is left behind."""

    def close(self) -> None:
        self.reader.close()


class Calibrated:
    """Layers for a method that looks at calibration inputs."""

    def __init__(self, inputs: StreamInputs, method: Method) -> None:
        if inputs.ids is None:
            raise ValueError("the method needs calibration data")
        self.inputs, self.method, self.ids = inputs, method, inputs.ids
        self.streamed = StreamedModel(inputs.folder, inputs.device)
        block_attention.use_blocks(self.streamed.model, self.streamed.device)
        self.experts = [self.streamed.separate_experts()]
        self.other: StreamedModel | None = None
        self.lanes = 2 if method.statistics == "cross" or method.block is not None else 1
        if self.lanes == 2 and inputs.original is not None:
            self.other = StreamedModel(inputs.original, inputs.device, self.streamed.dtype)
            block_attention.use_blocks(self.other.model, self.other.device)
            self.experts.append(self.other.separate_experts())
        self.run_layer = self._choose_mode()
        self.flow: HiddenStates  # set by `begin`

    def begin(self, progress: progress_file.Progress, run: StreamRun) -> progress_file.Progress:
        self.flow = HiddenStates(self.streamed, self.ids, run.scratch, self.lanes)
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
        collectors: dict[int, StatisticsCollector] = {}
        branches: list[Any] = []
        tops: dict[str, torch.Tensor] = {}

        def collect(group: int, inputs: tuple[Any, ...]) -> None:
            if groups[group][0] in mixtures:
                mixtures[groups[group][0]].collect(inputs)
                return
            if group not in collectors:
                collectors[group] = StatisticsCollector(self.method.statistics, inputs[0].shape[-1], inputs[0].device)
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
            done = transform_group(self.method, weights, collectors.pop(group).finish(), top)
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
        self.run_layer(LayerRun(lanes, flow.spans, heads, collect, solve_group, frozenset(outputs)))
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
            forward_modes.finish([lane], flow.spans)
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
            found[name] = MixtureRun(versions, self.flow.spans, self.flow.length, self.flow.folder)
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
        tokens, value = self.ids.numel(), self.streamed.dtype.itemsize
        width = self.inputs.facts.config.hidden_size
        held = suspended_bytes(tokens, width, widest(self.inputs.facts), value, self.lanes)
        limit = suspend_limit(device_bytes(self.streamed.device))
        return forward_modes.run_suspended if held <= limit else forward_modes.run_again

    def finished(self, layer: int) -> list[str]:
        return self.flow.finished(layer) if layer < len(self.streamed) else []

    def drop(self, layer: int) -> None:
        self.flow.drop(layer)

    def close(self) -> None:
        self.flow.drop(len(self.streamed))
        if self.other is not None:
            self.other.reader.close()


def _report_few(result: Mapping[str, Any], run: StreamRun) -> None:
    """Report experts that too few tokens reached for the method."""
    few = sorted({name.rpartition(".")[0] for name, module in result["modules"].items() if module.get("below_floor")})
    if few:
        several = f"{len(few)} experts, such as `{few[0]}`, saw too few tokens and are"
        what = several if len(few) > 1 else f"`{few[0]}` saw too few tokens and is"
        text = f"layer {result['layer'] + 1}: {what} changed without statistics"
        run.hooks.emit("message", level="warning", text=text)


def _no_experts(index: int, changed: Mapping[str, Transformed]) -> None:
    raise ValueError(f"the experts {', '.join(changed)} of layer {index} were changed, and nothing takes them")


def mode_of(method: Method) -> Mode:
    """Return the context in which a method's layers are run: tensors of inference mode could not have gradients."""
    return torch.inference_mode if method.block is None else torch.no_grad


def begin_flow(
    flow: HiddenStates, progress: progress_file.Progress, run: StreamRun, mode: Mode = torch.inference_mode
) -> progress_file.Progress:
    """Make what enters the first unfinished layer ready; return the progress that its files bear out."""
    layers = len(flow.streamed)
    if progress.layer == layers:
        return progress  # stopped while the folder was put together: no layer is left to feed
    with mode():
        if flow.begin(progress.layer, progress.hidden):
            return progress
        run.hooks.emit("message", level="warning", text="the hidden states of the interrupted run are not intact: "
                       "starting again at the first layer")  # fmt: skip
        flow.begin(0, [])
        return progress_file.Progress(layers)


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


def layer_error(result: Mapping[str, Any]) -> float | None:
    """The mean relative error of the changed modules of a layer: of their outputs, or of their weights where only

    those were measured; None where nothing was.
    """
    error = mean(result, "error")
    return mean(result, "weight_error") if error is None else error


def mean(result: Mapping[str, Any], metric: str) -> float | None:
    values = [m[metric] for m in result["modules"].values() if metric in m]
    return sum(values) / len(values) if values else None
