"""Agreement of an engine with the checkpoint that it was made from: logits, and tokens of greedy decoding.

The checkpoint runs in float32, with packed weights dequantized exactly and its adapter applied. The engine gets the
same windows in one call (prefill), and then prompts that it continues by itself (prefill and decode).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.contracts import metric_ranges
from runner.contracts.step_kind import ENGINE, METRICS_ONLY, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.export.preflight import unrunnable
from runner.model.layerwise import memory_budget
from runner.steps.engine_evaluation import ENGINE_RUNTIME

if TYPE_CHECKING:
    from runner.runtime.protocol import Ids, Runtime

VERSION = 2
CONSUMES = (ENGINE,)
PRODUCES = METRICS_ONLY
REQUIRES = ()
METRICS = {
    "max_logit_difference": metric_ranges.AMOUNT, "kl": metric_ranges.AMOUNT, "top1_agreement": metric_ranges.SHARE,
    "tokens": metric_ranges.COUNT, "greedy_agreement": metric_ranges.SHARE, "first_difference": metric_ranges.AMOUNT,
    "prompts": metric_ranges.COUNT,
}  # fmt: skip


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that vocabularies are equal, and that windows and prompts fit the data and the engine's lengths."""
    found = unrunnable(inputs.checkpoint, inputs.machine.device)
    ours, theirs = (facts.config.vocabulary_size for facts in (inputs.checkpoint, inputs.others["against"]))
    if ours != theirs:
        message = f"`against` has a vocabulary of {theirs} tokens, the engine one of {ours}"
        found.append(Diagnostic("R420", message, "compare with the checkpoint that the engine was made from",
                                path=("against",)))  # fmt: skip
    length = inputs.data["data"].sequence_length
    if params["prompt_tokens"] > length:
        message = f"`prompt_tokens` is {params['prompt_tokens']}; the windows of the data have {length} tokens"
        found.append(Diagnostic("R476", message, f"lower it to {length}", path=("prompt_tokens",)))
    context = (inputs.checkpoint.engine or {}).get("context")
    if not isinstance(context, int):
        return found
    if length > context:
        message = f"the windows of the data have {length} tokens; the engine runs at most {context}"
        found.append(Diagnostic("R476", message, "lower `sequence_length` of the data, or build it for longer ones",
                                path=("data",)))  # fmt: skip
    if (total := params["prompt_tokens"] + params["new_tokens"]) > context:
        message = f"`prompt_tokens` and `new_tokens` are {total} together; the engine runs at most {context}"
        found.append(Diagnostic("R476", message, "lower one of them, or build it for longer sequences",
                                path=("new_tokens",)))  # fmt: skip
    return found


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; the dense checkpoint in float32, the engine and logits of a window of each are in memory."""
    facts, machine = inputs.checkpoint, inputs.machine
    weights = sum(i.size for i in facts.sites)
    vocabulary = facts.config.vocabulary_size
    head = facts.config.hidden_size * vocabulary
    length = inputs.data["data"].sequence_length
    tokens = params["windows"] * length + params["prompts"] * (params["prompt_tokens"] + 4 * params["new_tokens"])
    logits = 5 * 8 * length * vocabulary  # both, and their differences and divergences, as float64
    resident = 2 * (weights * 4 + memory_budget.rest_bytes(facts, 4)) + logits
    seconds = 10 + 4 * tokens * (weights + head) / machine.flops
    return Cost(memory_budget.RUNTIME + ENGINE_RUNTIME + resident, 0, 0, seconds)


def run(ctx: Context) -> Result:
    from runner.runtime.open import open
    from runner.runtime.transformers import Reference

    ids = ctx.data("data").numpy()
    params = ctx.params
    engine = open(ctx.inputs["checkpoint"].path, ctx.device, ctx.threads)
    try:
        base = Reference(ctx.inputs["against"].path, ctx.device)
        metrics, windows = _logits(ctx, engine, base, ids[: params["windows"]])
        prompts = ids[: params["prompts"], : params["prompt_tokens"]]
        greedy, differences = _greedy(ctx, engine, base, prompts, params["new_tokens"])
    finally:
        engine.close()
    details = {
        "runtime": engine.name, "sequence_length": ids.shape[1], "windows": windows, "new_tokens": params["new_tokens"],
        "first_differences": differences,
    }  # fmt: skip
    return Result(metrics={**metrics, **greedy}, details=details)


def _logits(ctx: Context, engine: Runtime, base: Runtime, ids: Ids) -> tuple[dict[str, float], int]:
    """Compare the logits at every position; return metrics, KL(checkpoint ‖ engine) in nats per token, and windows."""
    import numpy as np

    largest, divergence, agree, tokens = 0.0, 0.0, 0, 0
    for done, window in enumerate(ids, 1):
        ctx.safe_point()
        theirs, ours = (runtime.prefill(window[None])[0].astype(np.float64) for runtime in (base, engine))
        difference = np.abs(theirs - ours).max()
        largest = max(largest, float(difference)) if np.isfinite(difference) else float("nan")
        p, q = _log_softmax(theirs), _log_softmax(ours)
        divergence += float((np.exp(p) * (p - q)).sum())
        agree += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        tokens += len(window)
        ctx.emit("progress", phase="logits", done=done, total=len(ids), unit="windows")
    found = {"max_logit_difference": largest, "kl": divergence / tokens, "top1_agreement": agree / tokens}
    return {**found, "tokens": tokens}, len(ids)


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _greedy(
    ctx: Context, engine: Runtime, base: Runtime, prompts: Ids, count: int
) -> tuple[dict[str, float], list[int | None]]:
    """Continue every prompt in both; a prompt agrees when all `count` tokens are equal.

    `first_difference` is the least number of equal tokens before the first that differs, `count` where none does.
    """
    from runner.runtime.greedy import greedy

    differences: list[int | None] = []
    for done, prompt in enumerate(prompts, 1):
        ctx.safe_point()
        theirs, ours = (greedy(runtime, prompt[None], count)[0] for runtime in (base, engine))
        differences.append(next((i for i in range(count) if theirs[i] != ours[i]), None))
        ctx.emit("progress", phase="greedy decoding", done=done, total=len(prompts), unit="prompts")
    found = {
        "greedy_agreement": differences.count(None) / len(differences),
        "first_difference": min((place for place in differences if place is not None), default=count),
        "prompts": len(differences),
    }
    return found, differences
