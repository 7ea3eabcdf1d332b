"""Perplexity and divergence of an engine, by its runtime. Imported by the planner: no torch, no numpy at import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from runner.contracts.noise import rounded
from runner.contracts.step_kind import Context, Cost, Inputs, Result
from runner.errors import Diagnostic
from runner.export.preflight import unrunnable
from runner.model.layerwise import memory_budget
from runner.steps.perplexities import perplexity

if TYPE_CHECKING:
    from runner.runtime.protocol import Ids, Logits

ENGINE_RUNTIME = 150 << 20  # bytes of the runtime of an engine and the code of transformers, without torch (measured)
_CHUNK = 64  # positions whose logits are float64 at once


def check(inputs: Inputs) -> list[Diagnostic]:
    """Return why the engine cannot be measured: on this device, on windows so long, or by several processes."""
    found = unrunnable(inputs.checkpoint, inputs.machine.device)
    context, length = (inputs.checkpoint.engine or {}).get("context"), inputs.data["data"].sequence_length
    if isinstance(context, int) and length > context:
        message = f"the windows of the data have {length} tokens; the engine runs at most {context}"
        found.append(Diagnostic("R476", message, "lower `sequence_length` of the data, or build it for longer ones",
                                path=("data",)))  # fmt: skip
    if inputs.processes > 1:
        message = f"`resources: {{processes: {inputs.processes}}}`: an engine is run by one process"
        found.append(Diagnostic("R714", message, "leave `processes` out"))
    return found


def estimate(inputs: Inputs, models: int) -> Cost:
    """Return the cost of running all tokens through the engine and `models` − 1 checkpoints, all in memory."""
    facts, machine, data = inputs.checkpoint, inputs.machine, inputs.data["data"]
    weights = sum(site.size for site in facts.sites)
    head = facts.config.hidden_size * facts.config.vocabulary_size
    logits = models * 4 * data.sequence_length * facts.config.vocabulary_size
    resident = models * (weights * 4 + memory_budget.rest_bytes(facts, 4)) + 2 * logits
    seconds = 10 + 2 * models * data.tokens * (weights + head) / machine.flops
    return Cost(memory_budget.RUNTIME + ENGINE_RUNTIME + resident, 0, 0, seconds)


def measure_perplexity(ctx: Context) -> Result:
    """Return the perplexity of the engine: windows that do not overlap, L − 1 targets each."""
    from runner.runtime.open import open

    ids, sums = ctx.data("data").numpy(), list[float]()
    with closing(open(ctx.inputs["checkpoint"].path, ctx.device, ctx.threads)) as engine:
        for window in _windows(ctx, ids):
            logits = engine.prefill(window[None])[0]
            sums.append(-sum(float(part[rows, window[places + 1]].sum()) for part, rows, places in _scored(logits)))
    windows, length = ids.shape
    tokens = windows * (length - 1)
    loss = sum(sums) / tokens
    return Result(
        metrics={"perplexity": perplexity(loss), "loss": loss, "tokens": tokens, "windows": windows},
        details={"sequence_length": length, "runtime": engine.name,
                 "samples": {"loss": rounded(each / (length - 1) for each in sums)}},
    )  # fmt: skip


def measure_divergence(ctx: Context) -> Result:
    """Return KL(against ‖ engine) per token and agreement of the top token; `against` computes in float32."""
    import numpy as np

    from runner.runtime.open import open
    from runner.runtime.transformers import Reference

    ids, sums, agree = ctx.data("data").numpy(), list[float](), list[int]()
    engine = open(ctx.inputs["checkpoint"].path, ctx.device, ctx.threads)
    with closing(engine), closing(Reference(ctx.inputs["against"].path, ctx.device)) as base:
        for window in _windows(ctx, ids):
            theirs, ours = base.prefill(window[None])[0], engine.prefill(window[None])[0]
            pairs = zip(_scored(theirs), _scored(ours), strict=True)
            sums.append(sum(float((np.exp(p) * (p - q)).sum()) for (p, *_), (q, *_) in pairs))
            agree.append(int((theirs.argmax(-1) == ours.argmax(-1))[:-1].sum()))
    windows, length = ids.shape
    tokens, each = windows * (length - 1), length - 1
    samples = {"kl": rounded(s / each for s in sums), "top1_agreement": rounded(a / each for a in agree)}
    return Result(
        metrics={"kl": sum(sums) / tokens, "top1_agreement": sum(agree) / tokens, "tokens": tokens},
        details={"sequence_length": length, "windows": windows, "runtime": engine.name, "samples": samples},
    )


def _windows(ctx: Context, ids: Ids) -> Iterator[Ids]:
    for done, window in enumerate(ids, 1):
        ctx.safe_point()
        yield window
        ctx.emit("progress", phase="logits", done=done, total=len(ids), unit="windows")


def _scored(logits: Logits) -> Iterator[tuple[Any, Any, Any]]:
    """Yield float64 log-probabilities [n, V] of n positions at a time with 0 … n − 1 and the positions; no last one."""
    import numpy as np

    for start in range(0, len(logits) - 1, _CHUNK):
        places = np.arange(start, min(start + _CHUNK, len(logits) - 1))
        part = logits[places].astype(np.float64)
        part -= part.max(axis=-1, keepdims=True)
        yield part - np.log(np.exp(part).sum(axis=-1, keepdims=True)), np.arange(len(places)), places
