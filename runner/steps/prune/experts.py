"""Dropping experts of a mixture: those that matter least are cut out, with their rows of the router.

runner/methods/expert_choice.py has the criteria, runner/model/layerwise/expert_usage.py what they are measured by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.metric_ranges import AMOUNT, COUNT, SHARE
from runner.contracts.mixtures import Mixture
from runner.contracts.step_kind import CHECKPOINT, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic, RecipeError, StepFailed
from runner.methods import expert_choice
from runner.model.architecture import fewer_experts
from runner.model.checkpoint import adapter_config
from runner.model.layerwise import memory_budget
from runner.steps.stream_cost import active_weights

if TYPE_CHECKING:
    from runner.model.layerwise.method import Results

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {
    "experts": COUNT, "experts_dropped": COUNT, "tokens_lost": SHARE, "energy_lost": SHARE, "energy_lost_max": SHARE,
    "bytes": AMOUNT,
}  # fmt: skip
_NEEDS_DATA = (expert_choice.REAP, expert_choice.FREQUENCY)


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would change those")
    if not facts.linears.mixtures:
        message = f"`{facts.source}` (`{facts.config.model_type}`) has no experts to drop: it is no mixture of experts"
        return [*found, Diagnostic("R841", message, "use `prune.width` or `prune.depth`, or another model")]
    if params["criterion"] in _NEEDS_DATA and "data" not in params:
        message = f"`criterion: {params['criterion']}` is measured on calibration text, and the step names none"
        remedy = "name an entry of `data`, or use `criterion: norm`"
        found.append(Diagnostic("R846", message, remedy, path=("criterion",)))
    count = min(each.experts for each in facts.linears.mixtures)
    wrong = _amount(params, facts, count)
    if wrong:
        return [*found, wrong]
    try:
        fewer_experts.facts_of(facts, fewer_experts.find(facts, kept(params, count)))
    except RecipeError as error:
        found += error.diagnostics
    return found


def kept(params: Params, count: int) -> int:
    """Return how many of `count` experts stay: `keep`, or what `ratio` leaves, rounded to the nearest."""
    return int(params["keep"]) if "keep" in params else count - int(count * params["ratio"] + 0.5)


def _amount(params: Params, facts: CheckpointFacts, count: int) -> Diagnostic | None:
    """Return a complaint about how many experts are to stay."""
    if ("keep" in params) == ("ratio" in params):
        what = "both say" if "keep" in params else "neither says"
        message = f"of `keep` and `ratio` {what} how many of {count} experts stay"
        return Diagnostic("R842", message, "write one of them", path=("keep",) if "keep" in params else ())
    key, keep, least = "keep" if "keep" in params else "ratio", kept(params, count), max(1, fewer_experts.active(facts))
    groups = max(each.groups for each in facts.linears.mixtures)
    if keep >= count:
        message = f"`{key}: {params[key]}` drops none of {count} experts"
        return Diagnostic("R842", message, f"keep {least} to {count - 1}", path=(key,))
    if keep < least:
        message = f"`{key}: {params[key]}` leaves {keep} of {count} experts, and every token is routed to {least}"
        return Diagnostic("R842", message, f"keep {least} or more", path=(key,))
    if groups > 1:
        return _in_groups(key, params[key], keep, groups, facts)
    return None


def _in_groups(key: str, value: Any, keep: int, groups: int, facts: CheckpointFacts) -> Diagnostic | None:
    """Return a complaint where the experts that stay do not fill the groups of which a router chooses some first."""
    chosen = facts.config.text.get("topk_group")
    searched = chosen if type(chosen) is int and chosen else groups
    # A group is scored by its two best experts (DeepSeek-V3, section 2.1.2), and those chosen must hold enough.
    each = max(2, -(-fewer_experts.active(facts) // searched))
    if keep % groups == 0 and keep // groups >= each:
        return None
    message = f"`{key}: {value}` leaves {keep} experts, and routers choose {searched} of {groups} equal groups first"
    remedy = f"keep a multiple of {groups} that is at least {groups * each}: {each} in every group"
    return Diagnostic("R843", message, remedy, path=(key,))


def estimate(params: Params, inputs: Inputs) -> Cost:
    facts, machine = inputs.checkpoint, inputs.machine
    disk = outcome(params, inputs).nbytes
    seconds = 3 + (facts.nbytes + disk) / machine.disk_bytes_per_second
    if "data" not in inputs.data:
        largest = max((site.size for site in facts.sites if site.is_expert), default=0)
        return Cost(memory_budget.WEIGHTS_RUNTIME + 12 * largest, disk, disk, seconds)
    tokens, length = inputs.data["data"].tokens, inputs.data["data"].sequence_length
    value, hidden = memory_budget.compute_bytes(facts, machine.device), facts.config.hidden_size
    held = memory_budget.suspended_bytes(tokens, hidden, memory_budget.widest(facts), value, 1)
    peak = memory_budget.RUNTIME + max(
        memory_budget.changed_layer_bytes(facts, value), memory_budget.rest_bytes(facts, value)
    )
    if machine.device != "cpu":
        peak += memory_budget.CUDA_RUNTIME
    else:
        peak += memory_budget.batch_bytes(facts, length, value, machine.device)
        peak += int(held * memory_budget.SUSPENDED_HEAP) if held <= memory_budget.suspend_limit(0) else 0
    scratch = disk + tokens * hidden * (3 * value + 4)
    return Cost(peak, disk, scratch, seconds + 2 + 2 * tokens * active_weights(facts) / machine.flops)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    facts = inputs.checkpoint
    count = min(each.experts for each in facts.linears.mixtures)
    return fewer_experts.facts_of(facts, fewer_experts.find(facts, kept(params, count)))


def changes(params: Params, inputs: Inputs) -> frozenset[str]:
    """Return the tensors that are cut, and those of experts, of which others take the names."""
    facts = inputs.checkpoint
    count = min(each.experts for each in facts.linears.mixtures)
    cut = fewer_experts.find(facts, kept(params, count))
    return frozenset((*cut.rows, *cut.own))


def run(ctx: Context) -> Result:
    from dataclasses import replace

    from runner.model.architecture import probe
    from runner.model.architecture.inspect import of_artifact
    from runner.model.checkpoint import derived
    from runner.model.checkpoint.headers import weights_nbytes
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.model.checkpoint.writer import parse_size
    from runner.steps import model_card

    checkpoint, params = ctx.inputs["checkpoint"], ctx.params
    facts = of_artifact(checkpoint)
    facts = replace(facts, description=probe.description(checkpoint.path, facts.tensors), tokenizer=checkpoint.path)
    mixtures = facts.linears.mixtures
    count = min(each.experts for each in mixtures)
    cut = fewer_experts.find(facts, kept(params, count))
    fewer_experts.facts_of(facts, cut)  # refuses what transformers would not load
    measured = _measured(ctx, facts)
    chosen, described = {}, []
    for mixture in mixtures:
        own = measured.get(mixture.name, {})
        scores = expert_choice.scores(params["criterion"], own, count, f"{ctx.seed}:{mixture.name}")
        chosen[mixture.name] = expert_choice.choose(scores, cut.keep, mixture.groups)
        described.append(_described(mixture, own, scores, chosen[mixture.name]))
    why = f"is not among the {cut.keep} of {count} that stay by `{params['criterion']}`"
    selection = derived.Selection(
        cut.names(facts.tensors, chosen), "the step does not write it",
        rows={name: chosen[mixture] for name, mixture in cut.rows.items()},
        reasons={name: f"expert {expert} {why}" for name, (_, expert, _) in cut.own.items()},
        max_shard_bytes=parse_size(params["max_shard_size"]),
    )  # fmt: skip
    with CheckpointReader(checkpoint.path) as reader:
        result = derived.Derived(selection, cut.config, card=model_card.render(ctx))
        account = derived.write(reader, result, ctx.out_dir)
    dropped = len(mixtures) * (count - cut.keep)
    metrics: dict[str, float] = {"experts": cut.keep, "experts_dropped": dropped, "bytes": weights_nbytes(ctx.out_dir)}
    for what in ("tokens_lost", "energy_lost"):
        values = [each[what] for each in described if what in each]
        if values:
            metrics[what] = sum(values) / len(values)
            if what == "energy_lost":
                metrics["energy_lost_max"] = max(values)
    return Result(metrics=metrics, details={"mixtures": described}, account=account)


def _measured(ctx: Context, facts: CheckpointFacts) -> dict[str, Mapping[str, Sequence[float]]]:
    """Return what is measured of the experts of each mixture; StepFailed where a number is not finite."""
    from math import isfinite

    from runner.model.layerwise import expert_usage
    from runner.model.layerwise.stream_run import StreamInputs
    from runner.steps.layer_stream import stream_run

    ids = ctx.data("data") if "data" in ctx.params else None
    if ids is None and ctx.params["criterion"] == expert_choice.RANDOM:
        return {}
    inputs = StreamInputs(ctx.inputs["checkpoint"].path, facts, ctx.device, ids)
    layers: Results = expert_usage.measure(inputs, stream_run(ctx), facts.linears.mixtures)
    found: dict[str, Mapping[str, Sequence[float]]] = {k: v for each in layers for k, v in each["mixtures"].items()}
    for name, own in found.items():
        for values in own.values():
            bad = next((number for number, value in enumerate(values) if not isfinite(value)), None)
            if bad is not None:
                raise StepFailed(f"expert {bad} of `{name}` gives outputs that are not finite", "check the model")
    return found


def _described(
    mixture: Mixture, measured: Mapping[str, Sequence[float]], scores: Sequence[float], keep: Sequence[int]
) -> dict[str, Any]:
    """Return what the record says of a mixture: which experts stay, their scores, and what is lost with the others."""
    found: dict[str, Any] = {"name": mixture.name, "layer": mixture.layer, "kept": list(keep), "scores": list(scores)}
    if "tokens" in measured:
        found["tokens"] = [int(value) for value in measured["tokens"]]
        found["tokens_lost"] = expert_choice.lost(measured["tokens"], keep)
        found["energy_lost"] = expert_choice.lost(measured["energy"], keep)
    return found
