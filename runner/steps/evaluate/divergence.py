"""Divergence of a checkpoint from another: KL(against ‖ checkpoint) per token, and agreement of the top token."""

from __future__ import annotations

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
from runner.steps import engine_evaluation, forward_cost

VERSION = 5
CONSUMES = (CHECKPOINT, QUANTIZED, ENGINE)
NAMED_ENGINES = True  # an engine is measured where `from` names it; else the checkpoint before it
PRODUCES = METRICS_ONLY
REQUIRES = ()
METRICS = {"kl": metric_ranges.AMOUNT, "top1_agreement": metric_ranges.SHARE, "tokens": metric_ranges.COUNT}
NOISE = {"kl": Noise(), "top1_agreement": Noise()}


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    own = inputs.checkpoint.engine is not None
    found = engine_evaluation.check(inputs) if own else forward_cost.check(params, inputs)
    ours, theirs = (facts.config.vocabulary_size for facts in (inputs.checkpoint, inputs.others["against"]))
    if ours != theirs:
        message = f"`against` has a vocabulary of {theirs} tokens, the checkpoint one of {ours}"
        found.append(Diagnostic("R420", message, "compare checkpoints of one tokenizer", path=("against",)))
    return found


def estimate(params: Params, inputs: Inputs) -> Cost:
    if inputs.checkpoint.engine is not None:
        return engine_evaluation.estimate(inputs, 2)
    return forward_cost.estimate_forward(
        [inputs.checkpoint, inputs.others["against"]], inputs.data["data"], inputs.machine
    )


def run(ctx: Context) -> Result:
    import torch
    from torch.nn.functional import kl_div

    from runner.model.layerwise.final_hidden import final_hidden, position_chunks
    from runner.model.layerwise.stream_run import StreamRun
    from runner.model.layerwise.streamed_model import StreamedModel
    from runner.runtime.open import engine
    from runner.steps.layer_stream import hooks

    if engine(ctx.inputs["checkpoint"].path) is not None:
        return engine_evaluation.measure_divergence(ctx)
    ids = ctx.data("data")
    base = StreamedModel(ctx.inputs["against"].path, ctx.device)
    mine = StreamedModel(ctx.inputs["checkpoint"].path, ctx.device)
    staging, calls = ctx.out_dir.parent, hooks(ctx)
    first = StreamRun(ctx.scratch_dir / "against", staging / "against.json", calls, after=len(mine))
    second = StreamRun(ctx.scratch_dir / "checkpoint", staging / "progress.json", calls, before=len(base))
    base_flow, my_flow = final_hidden(base, ids, first), final_hidden(mine, ids, second)
    base_final, my_final = base_flow.file(0, len(base)), my_flow.file(0, len(mine))
    base.load_rest(embedding=False)
    mine.load_rest(embedding=False)
    vocabulary = mine.vocabulary_size
    sums = torch.zeros(my_flow.windows, dtype=torch.float64)
    agree = torch.zeros(my_flow.windows, dtype=torch.int64)
    with torch.no_grad():
        for start, stop in my_flow.spans:
            theirs = base_final.read(start, stop)
            ours = my_final.read(start, stop)
            for keep in position_chunks(my_flow.length, 2 * (stop - start), vocabulary):
                p = base.logits(theirs, keep).log_softmax(-1)
                q = mine.logits(ours, keep).log_softmax(-1)
                sums[start:stop] += kl_div(q, p, log_target=True, reduction="none").sum(-1).double().sum(1).cpu()
                agree[start:stop] += (p.argmax(-1) == q.argmax(-1)).sum(1).cpu()
            ctx.emit("progress", phase="logits", done=stop, total=my_flow.windows, unit="windows")
    tokens = my_flow.windows * (my_flow.length - 1)
    each = my_flow.length - 1
    samples = {"kl": rounded((sums / each).tolist()), "top1_agreement": rounded((agree / each).tolist())}
    return Result(
        metrics={"kl": float(sums.sum()) / tokens, "top1_agreement": int(agree.sum()) / tokens, "tokens": tokens},
        details={"sequence_length": my_flow.length, "windows": my_flow.windows, "samples": samples},
    )
