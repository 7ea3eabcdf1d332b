"""The common part of kinds that rewrite decoder layers without changing what they compute (`transform.`).

`check`, `estimate`, `outcome` and `changes` are the planner's part, which imports no torch; `run` streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.contracts.context import Context, Result
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Cost, Inputs, Params
from runner.errors import Diagnostic
from runner.model.checkpoint import adapter_config
from runner.model.layerwise import memory_budget
from runner.steps.layerwise import unmatched

if TYPE_CHECKING:
    import torch

    from runner.model.layerwise.outside_rotation import RotatedOutside
    from runner.model.layerwise.rewriting import RewriteMethod
    from runner.model.layerwise.streamed_model import StreamedModel


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return complaints about an adapter, and about patterns that match nothing."""
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would change those")
    return found + unmatched({"ignore": (), **params}, facts, ("ignore", "overrides"))


def estimate(params: Params, inputs: Inputs, sample_tokens: int, trials: float) -> Cost:
    """Return the cost of one forward of all data, of `trials` forwards of a sample, and of writing the checkpoint.

    A layer is in memory in the type of the forward, then in float32.
    """
    facts, machine, data = inputs.checkpoint, inputs.machine, inputs.data["data"]
    value = memory_budget.compute_bytes(facts, machine.device)
    tokens, hidden = data.tokens, facts.config.hidden_size
    sample = sample_size(facts, data.sequence_length, tokens, machine.device, sample_tokens)
    disk = sum(tensor.nbytes for tensor in facts.tensors.values())
    peak = memory_budget.RUNTIME
    if machine.device == "cpu":
        running = memory_budget.batch_bytes(facts, data.sequence_length, 4, machine.device)
        layer = memory_budget.layer_weights(facts) * 4
        largest = max((site.size for site in facts.sites), default=0)
        working = running + 4 * 4 * hidden * sample + 3 * 4 * largest
        peak += max(layer + working, memory_budget.rest_bytes(facts, value))
    else:
        peak += max(memory_budget.layer_bytes(facts, 4), memory_budget.rest_bytes(facts, value))
        peak += memory_budget.CUDA_RUNTIME
    weights = sum(site.size for site in facts.sites)
    forward = 2 * weights * (tokens + trials * sample)
    seconds = 8 + 2 * disk / machine.disk_bytes_per_second + forward / machine.flops
    return Cost(peak, disk, disk + 2 * tokens * hidden * value, seconds)


def sample_size(facts: CheckpointFacts, length: int, tokens: int, device: str, wanted: int) -> int:
    """Return the tokens of the batches that trials run on, when `wanted` are asked for."""
    batch = max(length, memory_budget.batch_tokens(device, memory_budget.widest(facts)) // length * length)
    return min(tokens, max(batch, -(-wanted // batch) * batch))


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the same checkpoint: names, types and shapes stay."""
    return inputs.checkpoint


def changes(params: Params, inputs: Inputs) -> set[str]:
    """Return the tensors that may get other values: those of the linears and norms of the decoder layers."""
    facts = inputs.checkpoint
    tensors = {name for index in range(facts.layer_count) for name in facts.layer_tensors(index)}
    description = facts.description
    if description is None:
        return tensors
    kinds = {each.stored: each.kind for each in description.parameters}
    return {name for name in tensors if kinds.get(name) in ("linear", "conv1d", "norm")}


def run(
    ctx: Context,
    ids: torch.Tensor,
    method: Callable[[StreamedModel], RewriteMethod],
    outside: Callable[[StreamedModel, RewriteMethod], RotatedOutside] | None = None,
) -> Result:
    """Rewrite a checkpoint layer by layer on tokens `ids`, and write it to the step's folder. Repeatable.

    `outside` gives what changes outside the layers, once they are rewritten.
    """
    from runner.model.architecture.inspect import facts as read_facts
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.model.checkpoint.writer import CheckpointWriter, parse_size
    from runner.model.layerwise import engine
    from runner.model.layerwise.rewriting import RewritingLayers, require
    from runner.model.layerwise.rewritten_checkpoint import Outside, RewrittenCheckpoint
    from runner.model.layerwise.stream_run import StreamInputs
    from runner.model.layerwise.streamed_model import StreamedModel
    from runner.steps import layer_stream, model_card

    checkpoint = ctx.inputs["checkpoint"]
    facts = read_facts(checkpoint.path, str(checkpoint.path), checkpoint.sites)
    with CheckpointReader(checkpoint.path) as reader:
        streamed = StreamedModel(checkpoint.path, ctx.device)
        chosen = method(streamed)
        output = RewrittenCheckpoint(reader, facts, CheckpointWriter(ctx.scratch_dir / "parts"))
        layers = RewritingLayers(streamed, StreamInputs(checkpoint.path, facts, ctx.device, ids), chosen)
        results = engine.walk(layers, output.layer, layer_stream.stream_run(ctx))
        changed, worst = Outside(), [layer["divergence"] for layer in results]
        if outside is not None:
            rotated = outside(streamed, chosen)
            require("what surrounds the layers", rotated.divergence, chosen.tolerance)
            changed, worst = rotated.outside, [*worst, rotated.divergence]
        size = parse_size(ctx.params["max_shard_size"])
        account = output.finish(results, ctx.out_dir, size, model_card.render(ctx, results), changed)
    if outside is None and not any(layer["changed"] for layer in results):
        text = "no layer has a place where this rewrite keeps what it computes: every weight is as it was"
        ctx.emit("message", level="warning", text=text)
    found = layer_stream.summary(ctx.out_dir, results)
    proof = {"divergence": max(worst, default=0.0), "rounding": max((r["rounding"] for r in results), default=0.0)}
    return replace(found, metrics={**found.metrics, **proof}, account=account)


def site_params(params: Params, site: str) -> Mapping[str, Any] | None:
    """Return the params of one site; None where `ignore` names it."""
    from runner.steps.patterns import module_params

    return module_params(params, site)
