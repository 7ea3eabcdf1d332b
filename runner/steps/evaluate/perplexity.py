"""Perplexity as the papers count it: non-overlapping windows of L tokens, L − 1 targets each, exp of the mean loss."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contracts import metric_ranges
from runner.contracts.noise import Noise, rounded
from runner.contracts.step_kind import (
    CHECKPOINT,
    ENGINE,
    METRICS_ONLY,
    QUANTIZED,
    Context,
    Cost,
    Inputs,
    Params,
    Result,
)
from runner.errors import Diagnostic
from runner.steps import divided, engine_evaluation, forward_cost
from runner.steps.perplexities import perplexity

if TYPE_CHECKING:
    import torch

    from runner.model.layerwise.process_group import ProcessGroup
    from runner.model.layerwise.stream_run import StreamRun

VERSION = 5
CONSUMES = (CHECKPOINT, QUANTIZED, ENGINE)
NAMED_ENGINES = True  # an engine is measured where `from` names it; else the checkpoint before it
PRODUCES = METRICS_ONLY
REQUIRES = ()
DIVISIBLE = True
METRICS = {
    "perplexity": metric_ranges.PERPLEXITY,
    "loss": metric_ranges.AMOUNT,
    "tokens": metric_ranges.COUNT,
    "windows": metric_ranges.COUNT,
}
NOISE = {"perplexity": Noise("loss", exponential=True), "loss": Noise("loss")}


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    if inputs.checkpoint.engine is not None:
        return engine_evaluation.check(inputs)
    return forward_cost.check(params, inputs) + divided.check(inputs)


def estimate(params: Params, inputs: Inputs) -> Cost:
    if inputs.checkpoint.engine is not None:
        return engine_evaluation.estimate(inputs, 1)
    cost = forward_cost.estimate_forward([inputs.checkpoint], inputs.data["data"], inputs.machine)
    return divided.shared(cost, inputs)


def run(ctx: Context) -> Result:
    from runner.model.layerwise.process_group import started
    from runner.runtime.open import engine
    from runner.steps.layer_stream import stream_run

    if engine(ctx.inputs["checkpoint"].path) is not None:
        return engine_evaluation.measure_perplexity(ctx)
    ids, run = ctx.data("data"), stream_run(ctx)
    folder = ctx.inputs["checkpoint"].path
    follow = partial(_follow, folder, ctx.device, ids, run.scratch, run.progress)
    with started(ctx.processes, ctx.device, run.scratch, follow) as group:
        found = _losses(folder, ctx.device, ids, run, group)
    windows, length = ids.shape
    sums = [each for start in sorted(found) for each in found[start]]
    tokens = windows * (length - 1)
    loss = sum(sums) / tokens
    return Result(
        metrics={"perplexity": perplexity(loss), "loss": loss, "tokens": tokens, "windows": windows},
        details={"sequence_length": length, "samples": {"loss": rounded(each / (length - 1) for each in sums)}},
    )


def _follow(folder: Path, device: str, ids: torch.Tensor, scratch: Path, progress: Path, group: ProcessGroup) -> None:
    from runner.model.layerwise.stream_run import SILENT, StreamRun

    _losses(folder, device, ids, StreamRun(scratch, progress, SILENT), group)


def _losses(
    folder: Path, device: str, ids: torch.Tensor, run: StreamRun, group: ProcessGroup
) -> dict[int, list[float]]:
    """Return the summed losses of the windows of each batch by its first one, in the first process of all batches."""
    import torch
    from torch.nn.functional import cross_entropy

    from runner.model.layerwise.final_hidden import final_hidden, position_chunks
    from runner.model.layerwise.streamed_model import StreamedModel

    streamed = StreamedModel(folder, device)
    flow = final_hidden(streamed, ids, run, group=group)
    final = flow.file(0, len(streamed))
    streamed.load_rest(embedding=False)
    own: dict[int, list[float]] = {}
    with torch.no_grad():
        for start, stop in flow.spans:
            hidden = final.read(start, stop)
            window = ids[start:stop].to(streamed.device)
            sums = torch.zeros(stop - start, dtype=torch.float64)
            for keep in position_chunks(flow.length, stop - start, streamed.vocabulary_size):
                logits = streamed.logits(hidden, keep)
                targets = window[:, keep + 1]
                losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
                sums += losses.view_as(targets).double().sum(1).cpu()
            own[start] = sums.tolist()
            run.hooks.emit("progress", phase="logits", done=stop, total=flow.windows, unit="windows")
    return {start: losses for more in group.gather(own) for start, losses in more.items()}
