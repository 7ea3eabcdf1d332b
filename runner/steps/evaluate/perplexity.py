"""Perplexity as the papers count it: non-overlapping windows of L tokens, L − 1 targets each, exp of the mean loss."""

from __future__ import annotations

import math

from runner.contracts import metric_ranges
from runner.contracts.step_kind import CHECKPOINT, METRICS_ONLY, QUANTIZED, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.steps import forward_cost

VERSION = 3
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = METRICS_ONLY
REQUIRES = ()
METRICS = {
    "perplexity": metric_ranges.PERPLEXITY,
    "loss": metric_ranges.AMOUNT,
    "tokens": metric_ranges.COUNT,
    "windows": metric_ranges.COUNT,
}


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    return forward_cost.check(params, inputs)


def estimate(params: Params, inputs: Inputs) -> Cost:
    return forward_cost.estimate_forward([inputs.checkpoint], inputs.data["data"], inputs.machine)


def run(ctx: Context) -> Result:
    import torch
    from torch.nn.functional import cross_entropy

    from runner.model.layerwise.final_hidden import final_hidden, position_chunks
    from runner.model.layerwise.streamed_model import StreamedModel
    from runner.steps.layer_stream import stream_run

    ids = ctx.data("data")
    streamed = StreamedModel(ctx.inputs["checkpoint"].path, ctx.device)
    flow = final_hidden(streamed, ids, stream_run(ctx))
    final = flow.file(0, len(streamed))
    streamed.load_rest(embedding=False)
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for start, stop in flow.spans:
            hidden = final.read(start, stop)
            window = ids[start:stop].to(streamed.device)
            for keep in position_chunks(flow.length, stop - start, streamed.vocabulary_size):
                logits = streamed.logits(hidden, keep)
                targets = window[:, keep + 1]
                total += cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").double().cpu()
            ctx.emit("progress", phase="logits", done=stop, total=flow.windows, unit="windows")
    tokens = flow.windows * (flow.length - 1)
    loss = float(total) / tokens
    return Result(
        metrics={"perplexity": math.exp(loss), "loss": loss, "tokens": tokens, "windows": flow.windows},
        details={"sequence_length": flow.length},
    )
