"""Structured pruning of widths: feed-forward neurons, attention heads, channels of hidden states.

Minitron (Muralidharan 2024, arXiv:2407.14679). The scores are in runner/model/layerwise/unit_importance.py; which
rows and columns belong to which unit, in runner/model/architecture/units.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contracts import metric_ranges
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.model.architecture import units
from runner.model.architecture.units import HEADS, HIDDEN
from runner.model.checkpoint import adapter_config
from runner.model.layerwise import memory_budget
from runner.steps import forward_cost, unit_counts
from runner.steps.layer_method import ERRORS

if TYPE_CHECKING:
    import torch

    from runner.model.layerwise.unit_scores import Kept, Scored, Scores, Scoring

VERSION = 2
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {
    **ERRORS, "lost_importance": metric_ranges.SHARE, "divergence": metric_ranges.AMOUNT,
    "parameters": metric_ranges.COUNT, "bytes": metric_ranges.AMOUNT,
}  # fmt: skip


_SEEN = "activations"  # beside the scores of a layer: those of channels by their activations


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would cut those")
    refused = units.refuse(facts, unit_counts.asked(params))
    return [*found, refused] if refused is not None else found + unit_counts.wanted(params, units.widths(facts))[1]


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost of one forward of the data, of writing the checkpoint, and of comparing it with the original."""
    facts, machine = inputs.checkpoint, inputs.machine
    passed = forward_cost.estimate_forward([facts], inputs.data["data"], machine)
    disk = outcome(params, inputs).nbytes
    compared = 8 * memory_budget.layer_weights(facts) + 3 * memory_budget.rest_bytes(facts, 4)
    peak = max(passed.memory, memory_budget.RUNTIME + compared)
    peak += 0 if machine.device == "cpu" else memory_budget.CUDA_RUNTIME
    seconds = passed.seconds + 3 * (disk + facts.nbytes) / machine.disk_bytes_per_second
    return Cost(peak, disk, disk + passed.scratch, seconds)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    facts = inputs.checkpoint
    return units.facts(facts, unit_counts.wanted(params, units.widths(facts))[0])


def changes(params: Params, inputs: Inputs) -> set[str]:
    """Return the tensors that lose rows or columns."""
    before = units.widths(inputs.checkpoint)
    return set(units.layouts(inputs.checkpoint, units.differing(before, unit_counts.wanted(params, before)[0])))


def run(ctx: Context) -> Result:
    from runner.model.architecture.inspect import of_artifact
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.model.checkpoint.writer import CheckpointWriter, parse_size
    from runner.model.layerwise import engine
    from runner.model.layerwise.narrowed_checkpoint import Narrowing, compare
    from runner.model.layerwise.stream_run import StreamInputs
    from runner.model.layerwise.streamed_model import StreamedModel
    from runner.model.layerwise.unit_scores import ScoredLayers, Scoring
    from runner.steps import layer_stream, model_card

    folder, params = ctx.inputs["checkpoint"].path, ctx.params
    facts = of_artifact(ctx.inputs["checkpoint"])
    before = units.widths(facts)
    after = unit_counts.wanted(params, before)[0]
    scoring = Scoring(params["criterion"], params["aggregation"], before, after, ctx.seed)
    saved = CheckpointWriter(ctx.scratch_dir / "scores")

    def keep(index: int, scored: Scored) -> dict[str, Any]:
        saved.add(f"layer-{index:05d}", {**scored.scores, _SEEN: scored.activations[HIDDEN]})
        modules = {site: dict(metrics) for site, metrics in sorted(scored.modules.items())}
        heads = {"heads": list(scored.kept[HEADS])} if HEADS in scored.kept else {}
        return {"layer": index, "modules": modules, **heads}

    layers = ScoredLayers(StreamedModel(folder, ctx.device), StreamInputs(folder, facts, ctx.device, ctx.data("data")),
                          scoring)  # fmt: skip
    results = engine.walk(layers, keep, layer_stream.stream_run(ctx))
    scores = [_scores(saved.path(f"layer-{index:05d}")) for index in range(facts.layer_count)]
    kept = _kept(scoring, scores, facts, folder)
    _hidden_losses(results, scores, kept, facts)
    narrowing = Narrowing(facts, after, kept)
    with CheckpointReader(folder) as reader:
        parts, size = CheckpointWriter(ctx.scratch_dir / "parts"), parse_size(params["max_shard_size"])
        account = narrowing.write(reader, parts, ctx.out_dir, size, model_card.render(ctx, results))
    divergence = compare(narrowing, StreamedModel(folder, ctx.device), StreamedModel(ctx.out_dir, ctx.device))
    found = layer_stream.summary(ctx.out_dir, results)
    sizes = {"parameters": units.facts(facts, after).parameters, "parameters_before": facts.parameters,
             "bytes_before": facts.nbytes}  # fmt: skip
    return replace(found, metrics={**found.metrics, "divergence": divergence, **sizes}, account=account)


def _scores(path: Path) -> Scores:
    from safetensors.torch import load_file

    return load_file(path)


def _kept(scoring: Scoring, scores: list[Scores], facts: CheckpointFacts, folder: Path) -> list[Kept]:
    """Return the units that stay in each layer; channels of hidden states by the sum of their scores over layers."""
    inside = [{axis: score for axis, score in each.items() if axis not in (HIDDEN, _SEEN)} for each in scores]
    kept: list[Kept] = [scoring.keep(each) for each in inside]
    if HIDDEN in scoring.axes:
        total = sum((each[HIDDEN] for each in scores[1:]), scores[0][HIDDEN])
        if scoring.criterion == "magnitude":
            total = total + _outside(facts, folder)
        hidden = scoring.keep({HIDDEN: total})
        kept = [{**each, **hidden} for each in kept]
    return kept


def _outside(facts: CheckpointFacts, folder: Path) -> torch.Tensor:
    """Return the norm of the weights of each channel outside the decoder layers."""
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.model.layerwise.unit_scores import weight_squares

    inside = {name for index in range(facts.layer_count) for name in facts.layer_tensors(index)}
    with CheckpointReader(folder) as reader:
        return weight_squares(reader, facts, sorted(set(facts.tensors) - inside))[HIDDEN].sqrt().float()


def _hidden_losses(results: Any, scores: list[Scores], kept: list[Kept], facts: CheckpointFacts) -> None:
    """Note what each layer loses with the channels of its input that do not stay, at its first linears."""
    from runner.model.layerwise.unit_importance import lost

    for result, each, stay in zip(results, scores, kept, strict=True):
        if HIDDEN in stay:
            share = lost(each[_SEEN], stay[HIDDEN])
            for site in facts.sites:
                if site.layer == result["layer"] and site.role in ("q", "qkv", "gate", "gate_up"):
                    result["modules"].setdefault(site.name, {})["lost_importance"] = share
