"""The layer stream: a checkpoint goes through a layer-wise method one decoder layer at a time.

    for each decoder layer: read it ─► run the calibration batches up to each group of linears, collecting what the
    method asked for ─► transform the group ─► run on with the new weights ─► write the layer ─► note how far we are

A step killed at any moment goes on at its first unfinished layer and ends with the same bytes: finished layers are on
disk as parts, and what enters the next layer is in a file whose digest is checked before it is trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.contracts.context import Context, Result
from runner.contracts.facts import CheckpointFacts
from runner.model.architecture.config import hidden_size
from runner.model.architecture.inspect import facts as read_facts
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import adapter, block_attention, forward_modes, progress_file
from runner.model.layerwise.apply_method import dense, transform_group
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.linear import is_conv1d, is_linear
from runner.model.layerwise.memory_budget import suspend_limit, suspended_bytes, widest
from runner.model.layerwise.method import LayerMethod, Statistics, Transformed
from runner.model.layerwise.output import Output, Results
from runner.model.layerwise.statistics_collector import StatisticsCollector
from runner.model.layerwise.streamed_model import StreamedModel, dense_copy
from runner.system import heap


def transform(ctx: Context, method: LayerMethod) -> Result:
    """Run a layer-wise method over a checkpoint; the new checkpoint is in `ctx.out_dir`."""
    want = method.wants(ctx.params)
    facts = read_facts(ctx.inputs["checkpoint"].path, str(ctx.inputs["checkpoint"].path))
    reader = CheckpointReader(ctx.inputs["checkpoint"].path)
    transposed = frozenset(linear.name for linear in facts.linears if linear.transposed)
    output = Output(ctx, reader, facts, method.kind)
    names = [facts.layer_tensors(index) for index in range(facts.layer_count)]
    if want == "none":
        layers: Any = WeightsOnly(ctx, method, reader, facts, transposed)
    else:
        layers = Calibrated(ctx, method, want, facts)
    results = walk(ctx, layers, facts.layer_count, lambda index, changed: output.layer(index, names[index], changed))
    output.finish({name for layer in names for name in layer}, results)
    return summary(ctx, results)


def walk(
    ctx: Context, layers: Any, count: int, keep: Callable[[int, Mapping[str, Transformed]], dict[str, Any]]
) -> Results:
    """Run `layers` one after another from the first unfinished one. `keep` puts what became of a layer on disk and

    returns what the record says of it; all of that is the result.
    """
    path = ctx.out_dir.parent / "progress.json"
    progress: progress_file.Progress = layers.begin(progress_file.load(path, count))
    layers.left = left = heap.Layers()
    with torch.inference_mode():
        for index in range(progress.layer, count):
            ctx.safe_point()
            started = time.perf_counter()
            result = keep(index, layers.run(index))
            progress.results.append(result)
            progress.layer, progress.hidden = index + 1, layers.finished(index + 1)
            progress.save(path)
            layers.drop(index)
            left.ended()
            before = mean(result, "error_before")
            ctx.emit(
                "layer", layer=index + 1, layers=count, seconds=time.perf_counter() - started,
                error=mean(result, "error"), **({} if before is None else {"error_before": before}),
            )  # fmt: skip
    layers.close()
    return progress.results


class WeightsOnly:
    """Layers for a method that needs no calibration: weights are read one linear at a time, nothing is run."""

    def __init__(
        self,
        ctx: Context,
        method: LayerMethod,
        reader: CheckpointReader,
        facts: CheckpointFacts,
        transposed: frozenset[str],
    ) -> None:
        self.ctx, self.method, self.reader, self.facts, self.transposed = ctx, method, reader, facts, transposed
        self.left: heap.Layers  # set by `walk`

    def begin(self, progress: progress_file.Progress) -> progress_file.Progress:
        return progress

    def run(self, index: int) -> dict[str, Transformed]:
        changed: dict[str, Transformed] = {}
        for linear in self.facts.linears:
            if linear.layer == index:
                weight = self.reader.read_module_weight(linear.name).to(self.ctx.device)
                weights = {linear.name: weight.T if linear.name in self.transposed else weight}
                changed |= transform_group(self.method, self.ctx.params, weights, Statistics())
        return changed

    def finished(self, layer: int) -> list[str]:
        return []

    def drop(self, layer: int) -> None:
        """Nothing flows, so nothing is left behind."""

    def close(self) -> None:
        """Nothing is open."""


class Calibrated:
    """Layers for a method that looks at calibration inputs.

    The unchanged model that "cross" compares with is the checkpoint itself, or that in the folder `unchanged`, which
    has the same layers.
    """

    def __init__(
        self, ctx: Context, method: LayerMethod, want: str, facts: CheckpointFacts, unchanged: Path | None = None
    ) -> None:
        self.ctx, self.method, self.want, self.facts = ctx, method, want, facts
        self.streamed = StreamedModel(ctx.inputs["checkpoint"].path, ctx.device)
        block_attention.use_blocks(self.streamed.model, self.streamed.device)
        self.other: StreamedModel | None = None
        if want == "cross" and unchanged is not None:
            self.other = StreamedModel(unchanged, ctx.device, self.streamed.dtype)
            block_attention.use_blocks(self.other.model, self.other.device)
        self.ids = ctx.data("data")
        self.flow = HiddenStates(self.streamed, self.ids, ctx.scratch_dir, lanes=2 if want == "cross" else 1)
        self.pass_ = self._choose_pass()
        self.left: heap.Layers  # set by `walk`

    def begin(self, progress: progress_file.Progress) -> progress_file.Progress:
        if progress.layer == len(self.streamed):
            return progress  # stopped while the folder was put together: no layer is left to feed
        with torch.inference_mode():
            if self.flow.begin(progress.layer, progress.hidden):
                return progress
            self.ctx.emit("message", level="warning", text="the hidden states of the interrupted run are not intact: "
                          "starting again at the first layer")  # fmt: skip
            self.flow.begin(0, [])
            return progress_file.Progress(len(self.streamed))

    def run(self, index: int) -> dict[str, Transformed]:
        flow, streamed = self.flow, self.streamed
        layer = streamed.layers[index]
        linears = {name: module for name, module in layer.named_modules() if is_linear(module)}
        streamed.load(index)
        groups = forward_modes.find_groups(layer, list(linears), *flow.scout(index))
        lanes = [flow.lane(0, index, layer)]
        if flow.lanes == 2:
            lanes.append(flow.lane(1, index, dense_copy(layer) if self.other is None else self.other.load(index)))
        changed: dict[str, Transformed] = {}
        collectors: dict[int, StatisticsCollector] = {}
        branches: list[Any] = []

        def collect(group: int, inputs: tuple[torch.Tensor, ...]) -> None:
            if group not in collectors:
                collectors[group] = StatisticsCollector(self.want, inputs[0].shape[-1], inputs[0].device)
            collectors[group].add(*inputs)

        def solve_group(group: int) -> None:
            members = {self._stored(index, name): linears[name] for name in groups[group]}
            weights = {name: self._weight(module) for name, module in members.items()}
            done = transform_group(self.method, self.ctx.params, weights, collectors.pop(group).finish())
            for name, result in done.items():
                branches.extend(install(members[name], result, streamed.stored_dtype))
            changed.update(done)
            if flow.lanes > 1 or self.left.grows:
                heap.trim()  # what forwards left: two flows of the demo model took 1.7 GB without it, 1.3 with it

        last = index == len(streamed) - 1
        heads = [names[0] for names in groups]
        self.pass_(lanes, flow.spans, lambda s: flow.call(index, s), heads, collect, solve_group, output=not last)
        for branch in branches:
            branch.remove()
        streamed.free(index)
        if self.other is not None:
            self.other.free(index)
        return changed

    def model_names(self) -> dict[str, str]:
        """Name in the checkpoint → name in the model, of every linear of the decoder layers."""
        return self.streamed.linear_names()

    def _stored(self, index: int, name: str) -> str:
        return self.streamed.stored_module(f"{self.streamed.layer_name(index)}.{name}")

    def _weight(self, module: nn.Module) -> torch.Tensor:
        """The weight [out, in] in the type it is stored in: what the forward rounded is not what is quantized."""
        weight = weight_of(module)
        if weight.dtype != self.streamed.stored_dtype:
            weight = weight.to(self.streamed.stored_dtype)
        return weight.T if is_conv1d(module) else weight

    def _choose_pass(self) -> Any:
        if not self.ctx.params.get("true_sequential", True):
            return forward_modes.run_at_once
        tokens, value = self.ids.numel(), self.streamed.dtype.itemsize
        width = hidden_size(self.facts.config)
        held = suspended_bytes(tokens, width, widest(self.facts), value, self.flow.lanes)
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


def mean(result: Mapping[str, Any], metric: str) -> float | None:
    values = [m[metric] for m in result["modules"].values() if metric in m]
    return sum(values) / len(values) if values else None


def summary(ctx: Context, results: list[dict[str, Any]]) -> Result:
    """Metrics of the whole step: the mean of every metric over modules, and the bytes written."""
    modules = [m for layer in results for m in layer["modules"].values()]
    keys = sorted({k for m in modules for k, v in m.items() if isinstance(v, float)})
    metrics = {k: sum(m[k] for m in modules if k in m) / sum(k in m for m in modules) for k in keys}
    metrics["bytes"] = sum(p.stat().st_size for p in ctx.out_dir.glob("*.safetensors"))
    metrics["modules"] = len(modules)
    return Result(metrics=metrics, details={"layers": results})
