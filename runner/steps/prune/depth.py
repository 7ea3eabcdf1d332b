"""Structured pruning of depth: decoder layers are left out, those of least influence, of least loss, or named ones.

Influence is that of ShortGPT (Men 2024, arXiv:2403.03853), the loss without a layer that of Shortened LLaMA (Kim 2024,
arXiv:2402.02834); both are measured in runner/training/layer_dropping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.contracts import metric_ranges
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.model.checkpoint import adapter_config
from runner.model.layerwise import memory_budget
from runner.steps import forward_cost
from runner.steps.perplexities import perplexity
from runner.training import layer_selection

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {
    "layers": metric_ranges.COUNT, "parameters": metric_ranges.COUNT, "bytes": metric_ranges.AMOUNT,
    "influence_dropped": metric_ranges.UNKNOWN,
}  # fmt: skip


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would leave out some of it")
    refused = layer_selection.refuse(facts) or _shared(facts)
    if refused is not None:
        return [*found, refused]
    found += counts_complaints(params, facts.layer_count)
    if _is_measured(params) and not params.get("data"):
        message = f"`choose: {params['choose']}` measures layers on text, and the step names no `data`"
        found.append(Diagnostic("R808", message, "name an entry of `data`, or the layers", path=("choose",)))
    other = layer_selection.uneven(facts)
    if other is not None and not _named(params):
        message = (
            f"layers {other[0]} and {other[1]} of `{facts.source}` hold different tensors, so that no plan can tell"
        )
        message += " which tensors are written before layers are measured"
        help = "name the layers: `keep: [0, 1, …]` or `drop: [5, …]`"
        found.append(Diagnostic("R807", message, help, path=(_key(params),)))
    return found


def _shared(facts: CheckpointFacts) -> Diagnostic | None:
    if facts.description is None or not facts.description.hands_state:
        return None
    message = (
        f"layers of `{facts.source}` (`{facts.config.model_type}`) cannot be left out: they hand one another keys "
    )
    return Diagnostic("R806", f"{message}and values", layer_selection.OTHERS)


def _key(params: Params) -> str:
    return "keep" if params.get("keep") is not None else "drop"


def _named(params: Params) -> bool:
    return isinstance(params[_key(params)], list)


def _is_measured(params: Params) -> bool:
    return not _named(params) and params["choose"] != "even"


def wanted(params: Params, count: int) -> int | list[int]:
    """Return how many of `count` layers stay, or which."""
    key = _key(params)
    value = params[key]
    if isinstance(value, list):
        return list(value) if key == "keep" else [layer for layer in range(count) if layer not in value]
    number = round(value * count) if value < 1 else int(value)
    return number if key == "keep" else count - number


def counts_complaints(params: Params, count: int) -> list[Diagnostic]:
    """Return complaints about layers that the checkpoint does not have, and where all stay or none."""
    key, value = _key(params), params[_key(params)]
    if isinstance(value, list):
        found = [
            Diagnostic("R805", f"`{key}` names layer {layer}; the checkpoint has the layers 0 to {count - 1}",
                       "layers count from 0", path=(key, index))
            for index, layer in enumerate(value) if layer >= count
        ]  # fmt: skip
        if found:
            return found
        if value != sorted(set(value)):
            message = f"`{key}` must name each layer once, in rising order; got {value}"
            return [Diagnostic("R805", message, f"write {sorted(set(value))}", path=(key,))]
    stay = wanted(params, count)
    number = len(stay) if isinstance(stay, list) else stay
    if 0 < number < count:
        return []
    message = f"`{key}` leaves {number} of {count} decoder layers"
    return [Diagnostic("R805", message, f"leave 1 to {count - 1}", path=(key,))]


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost of measuring layers, and of writing the checkpoint."""
    facts, machine = inputs.checkpoint, inputs.machine
    disk = outcome(params, inputs).nbytes
    seconds = 8 + 2 * disk / machine.disk_bytes_per_second
    if not _is_measured(params):
        return Cost(memory_budget.RUNTIME, disk, 0, seconds)
    passed = forward_cost.estimate_forward([facts], inputs.data["data"], machine)
    models = facts.layer_count + 1 if params["choose"] == "perplexity" else 1
    return Cost(passed.memory, disk, models * passed.scratch, seconds + (1 + models) / 2 * passed.seconds)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the result; evenly spaced layers stand for those that measuring decides on."""
    facts = inputs.checkpoint
    stay = wanted(params, facts.layer_count)
    return layer_selection.facts(facts, _evenly(stay, facts.layer_count) if isinstance(stay, int) else stay)


def _evenly(count: int, layers: int) -> list[int]:
    return layer_selection.evenly(count, layers)


def changes(params: Params, inputs: Inputs) -> set[str]:
    """Return the tensors of decoder layers: what stays moves to other numbers."""
    facts = inputs.checkpoint
    return {name for index in range(facts.layer_count) for name in facts.layer_tensors(index)}


def run(ctx: Context) -> Result:
    from runner.model.architecture.inspect import of_artifact
    from runner.model.checkpoint.writer import parse_size
    from runner.steps import model_card
    from runner.training import layer_dropping

    folder = ctx.inputs["checkpoint"].path
    facts = of_artifact(ctx.inputs["checkpoint"])
    stay = wanted(ctx.params, facts.layer_count)
    keep = stay if isinstance(stay, list) else _evenly(stay, facts.layer_count)
    measured: Mapping[str, Any] = {}
    if isinstance(stay, int):
        layer_dropping.cut_config(folder, facts, keep)  # refuses a model before it is measured
        keep, measured = _measured(ctx, folder, stay, keep)
    size = parse_size(ctx.params["max_shard_size"])
    account = layer_dropping.write(folder, facts, keep, ctx.out_dir, size, model_card.render(ctx))
    after = layer_selection.facts(facts, keep)
    dropped = [layer for layer in range(facts.layer_count) if layer not in keep]
    metrics: dict[str, Any] = {
        "layers": len(keep), "parameters": after.parameters, "parameters_before": facts.parameters,
        "bytes": after.nbytes, "bytes_before": facts.nbytes,
    }  # fmt: skip
    if "influence" in measured:
        metrics["influence_dropped"] = sum(measured["influence"][layer] for layer in dropped)
    return Result(metrics, {"kept_layers": keep, "dropped_layers": dropped, **measured}, account)


def _measured(ctx: Context, folder: Path, stay: int, evenly: list[int]) -> tuple[list[int], Mapping[str, Any]]:
    """Return the layers that stay, and what each was found to be worth."""
    from runner.steps.layer_stream import stream_run
    from runner.training import layer_dropping

    if ctx.params["choose"] == "even":
        return evenly, {}
    if ctx.params["choose"] == "influence":
        influence = layer_dropping.influence(folder, ctx.data("data"), ctx.device, stream_run(ctx))
        return layer_selection.most_influential(stay, influence), {"influence": influence}
    *losses, complete = layer_dropping.losses_without(folder, ctx.data("data"), ctx.device, stream_run(ctx))
    perplexities = {"perplexity": perplexity(complete), "perplexity_without": [perplexity(loss) for loss in losses]}
    return layer_selection.most_influential(stay, losses), perplexities
