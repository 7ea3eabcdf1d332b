"""Dropping experts of a mixture: those that matter least are cut out, with their rows of the router, or merged.

runner/methods/expert_choice.py has the criteria, runner/model/layerwise/expert_usage.py what they are measured by,
runner/methods/expert_merging.py how a dropped expert is added to one that stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from runner.model.layerwise.expert_stream import MixtureRun
    from runner.model.layerwise.method import Results

VERSION = 2
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {
    "experts": COUNT, "experts_dropped": COUNT, "experts_merged": COUNT, "tokens_lost": SHARE, "energy_lost": SHARE,
    "energy_lost_max": SHARE, "bytes": AMOUNT,
}  # fmt: skip
_SECONDS_OF_MATCHING = 1e-10  # scipy's assignment of n neurons to n, over n³
_NEEDS_DATA = (expert_choice.REAP, expert_choice.ENERGY, expert_choice.FREQUENCY)


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
    if params["merge"]:
        found += _unmerged(params, facts)
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


def _unmerged(params: Params, facts: CheckpointFacts) -> list[Diagnostic]:
    """Return complaints about experts that cannot be merged."""
    if "data" not in params:
        message = "`merge: true` compares the outputs of experts on calibration text, and the step names none"
        return [Diagnostic("R846", message, "name an entry of `data`, or leave `merge` out", path=("merge",))]
    other = fewer_experts.beside_matrices(facts)
    if other:
        message = f"experts of `{facts.source}` (`{facts.config.model_type}`) cannot be merged: {other}"
        return [Diagnostic("R847", message, "leave `merge` out: they are dropped then", path=("merge",))]
    return []


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
    largest = max((site.size for site in facts.sites if site.is_expert), default=0)
    if "data" not in inputs.data:
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
    if params["merge"]:
        more = _merging(params, facts.linears.mixtures, tokens, hidden, machine.flops)
        # Products of all pairs of neurons, twice the second time, beside the matrices of two experts.
        peak = max(peak + more.outputs, memory_budget.WEIGHTS_RUNTIME + more.matching + 32 * largest)
        seconds += more.seconds
    scratch = disk + tokens * hidden * (3 * value + 4)
    return Cost(peak, disk, scratch, seconds + 2 + 2 * tokens * active_weights(facts) / machine.flops)


class _Merging(NamedTuple):
    """What merging takes: bytes of `outputs` that are compared, bytes and seconds of `matching` neurons."""

    outputs: int
    matching: int
    seconds: float


def _merging(params: Params, mixtures: Sequence[Mixture], tokens: int, hidden: int, flops: float) -> _Merging:
    outputs, neurons, orders, seconds = 0, 0, 0, 0.0
    for each in mixtures:
        compared, width = expert_choice.compared(each.experts, hidden, tokens), each.matrices[-1].columns
        dropped, size = each.experts - kept(params, each.experts), sum(m.rows * m.columns for m in each.matrices)
        outputs, neurons = max(outputs, 8 * each.experts * hidden * compared), max(neurons, width)
        orders += 8 * dropped * width
        products = 2 * size * (each.experts * compared + dropped * width)
        seconds += products / flops + dropped * width**3 * _SECONDS_OF_MATCHING
    return _Merging(outputs, 16 * neurons**2 + orders, seconds)


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
    from runner.methods import merged_experts
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
    choice = _Choice(params["criterion"], cut.keep, ctx.seed)
    measured = _measured(ctx, facts, choice)
    chosen, described = {}, []
    for mixture in mixtures:
        own = measured.get(mixture.name, {})
        scores, chosen[mixture.name] = choice.scores(mixture, own), choice.kept(mixture, own)
        described.append(_described(mixture, own, scores, chosen[mixture.name]))
    with CheckpointReader(checkpoint.path) as reader:
        sites = {site.name: site for site in facts.sites}
        merged = [
            merged_experts.Merged(reader, each, sites, chosen[each.name], own)
            for each in mixtures
            if "joins" in (own := measured.get(each.name, {}))
        ]
        selection = derived.Selection(
            cut.names(facts.tensors, chosen), "the step does not write it",
            rows={name: chosen[mixture] for name, mixture in cut.rows.items()},
            reasons=_reasons(cut, count, params["criterion"], measured),
            max_shard_bytes=parse_size(params["max_shard_size"]),
            changes={name: pieces for each in merged for name, pieces in each.changes().items()},
        )  # fmt: skip
        result = derived.Derived(selection, cut.config, card=model_card.render(ctx))
        account = derived.write(reader, result, ctx.out_dir)
    dropped = len(mixtures) * (count - cut.keep)
    metrics: dict[str, float] = {"experts": cut.keep, "bytes": weights_nbytes(ctx.out_dir)}
    if params["merge"]:
        metrics["experts_merged"] = sum(len(expert_choice.added(own)) for own in measured.values())
    metrics["experts_dropped"] = dropped - metrics.get("experts_merged", 0)
    for what in ("tokens_lost", "energy_lost"):
        values = [each[what] for each in described if what in each]
        if values:
            metrics[what] = sum(values) / len(values)
            if what == "energy_lost":
                metrics["energy_lost_max"] = max(values)
    return Result(metrics=metrics, details={"mixtures": described}, account=account)


@dataclass(frozen=True)
class _Choice:
    """Which experts of a mixture stay, by what is measured of them."""

    criterion: str
    keep: int
    seed: int

    def scores(self, mixture: Mixture, measured: Mapping[str, Sequence[float]]) -> list[float]:
        return expert_choice.scores(self.criterion, measured, mixture.experts, f"{self.seed}:{mixture.name}")

    def kept(self, mixture: Mixture, measured: Mapping[str, Sequence[float]]) -> list[int]:
        return expert_choice.choose(self.scores(mixture, measured), self.keep, mixture.groups)


def _reasons(
    cut: fewer_experts.FewerExperts,
    count: int,
    criterion: str,
    measured: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, str]:
    """Return why the tensors of single experts are not written under their own names, where they are not."""
    added = {name: expert_choice.added(own) for name, own in measured.items() if "joins" in own}
    why = f"is not among the {cut.keep} of {count} that stay by `{criterion}`"
    found = {}
    for name, (mixture, expert, _) in cut.own.items():
        into = added.get(mixture, {}).get(expert)
        found[name] = f"expert {expert} " + (why if into is None else f"is merged into expert {into}")
    return found


def _measured(ctx: Context, facts: CheckpointFacts, choice: _Choice) -> dict[str, Mapping[str, Sequence[float]]]:
    """Return what is measured of the experts of each mixture; StepFailed where a number is not finite."""
    from math import isfinite

    from runner.methods import merged_experts
    from runner.model.layerwise import expert_usage
    from runner.model.layerwise.stream_run import StreamInputs
    from runner.steps.layer_stream import stream_run

    ids = ctx.data("data") if "data" in ctx.params else None
    if ids is None and ctx.params["criterion"] == expert_choice.RANDOM:
        return {}
    inputs = StreamInputs(ctx.inputs["checkpoint"].path, facts, ctx.device, ids)

    def joined(mixture: Mixture, own: Mapping[str, Sequence[float]], run: MixtureRun) -> dict[str, list[float]]:
        return merged_experts.joined(run, choice.kept(mixture, own))

    more = joined if ctx.params["merge"] else None
    layers: Results = expert_usage.measure(inputs, stream_run(ctx), facts.linears.mixtures, more)
    found: dict[str, Mapping[str, Sequence[float]]] = {k: v for each in layers for k, v in each["mixtures"].items()}
    for name, own in found.items():
        for what, values in own.items():
            bad = next((number for number, value in enumerate(values) if not isfinite(value)), None)
            if bad is not None:
                holds = "has weights" if what == "norm" else "gives outputs"
                raise StepFailed(f"expert {bad} of `{name}` {holds} that are not finite", "check the model")
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
    if "joins" in measured:
        found |= {"joins": [int(value) for value in measured["joins"]], "alike": list(measured["alike"])}
    return found
