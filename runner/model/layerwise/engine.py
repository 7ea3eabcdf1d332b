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
from typing import Any, Protocol, TypeVar

import torch

from runner.model.layerwise import progress_file
from runner.model.layerwise.calibrated import Calibrated, mode_of
from runner.model.layerwise.flowing_layers import Mode
from runner.model.layerwise.method import Method, Results, Transformed
from runner.model.layerwise.process_group import ALONE, ProcessGroup, started
from runner.model.layerwise.stream_run import SILENT, ExpertSink, StreamInputs, StreamRun
from runner.model.layerwise.weights_only import WeightsOnly
from runner.system import heap

Sink = Callable[[int, Mapping[str, Transformed]], dict[str, Any]]


def transform(
    inputs: StreamInputs, method: Method, sink: Sink, run: StreamRun, experts: ExpertSink | None = None
) -> Results:
    """Run a layer-wise method over a checkpoint. `sink` gets the changed modules of each layer, by their names in the

    checkpoint, puts the layer on disk, and returns what the record says of it; all of that is the result. `experts`
    gets those of each expert before that, as soon as they are there. Finished layers of an interrupted run are not run
    again.
    """
    follow = partial(_follow, inputs, method, run.scratch, run.progress)
    with started(inputs.processes, inputs.device, run.scratch, follow) as group:
        return walk(open_layers(inputs, method, group), sink, run, experts, mode_of(method))


def open_layers(inputs: StreamInputs, method: Method, group: ProcessGroup = ALONE) -> WeightsOnly | Calibrated:
    """The decoder layers of a checkpoint, ready for `walk`."""
    plain = method.statistics == "none" and method.block is None
    return WeightsOnly(inputs, method) if plain else Calibrated(inputs, method, group)


def _follow(inputs: StreamInputs, method: Method, scratch: Path, progress: Path, group: ProcessGroup) -> None:
    """Run the same layers as the first process, which writes them, from the same one on."""
    layers = open_layers(inputs, method, group)
    count = inputs.facts.layer_count
    begun = layers.begin(progress_file.load(progress, count), StreamRun(scratch, progress, SILENT))
    with mode_of(method)():
        for index in range(begun.layer, count):
            layers.run(index, _no_experts)
            layers.finished(index + 1)
            layers.drop(index)
            heap.trim()
    layers.close()


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


def layer_error(result: Mapping[str, Any]) -> float | None:
    """The mean relative error of the changed modules of a layer: of their outputs, or of their weights where only

    those were measured; None where nothing was.
    """
    error = mean(result, "error")
    return mean(result, "weight_error") if error is None else error


def mean(result: Mapping[str, Any], metric: str) -> float | None:
    values = [m[metric] for m in result["modules"].values() if metric in m]
    return sum(values) / len(values) if values else None
