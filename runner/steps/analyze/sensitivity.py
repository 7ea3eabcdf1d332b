"""Sensitivity: what each site, or group of sites that servers fuse, loses under each number of bits, or each sparsity.

Three measures, each dearer and closer to the model's own loss than the one before:

    output_error  Σ over sites of tr(E H Eᵀ) / tr(W H Wᵀ), E what rounding changes, H the second moment of the inputs
    gradient      ½ Σ_r γ_r (E H Eᵀ)_rr / 2, γ the diagonal of the Fisher information of the outputs: the divergence in
                  nats per token to second order (HAWQ and AutoScheme weigh errors by gradients too)
    kl            KL(model ‖ model with only that group rounded), by running it

The errors under H are measured in each case, on the layer stream. With `sparsities`, weights become zero in place of
rounding them, by Wanda or by SparseGPT, and every site but experts is by itself.
runner/steps/sensitivity_measures.py runs them.
"""

from __future__ import annotations

from dataclasses import replace

from runner.contracts import metric_ranges
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, METRICS_ONLY, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.model.checkpoint import adapter_config
from runner.model.checkpoint.quantization.scheme import integers
from runner.model.layerwise import memory_budget
from runner.steps import layerwise, storage_refusals
from runner.steps.gptq_solver import solve, solving_seconds
from runner.steps.layer_method import LayerMethod
from runner.steps.site_groups import groups
from runner.steps.targets import chosen
from runner.training.estimate import LOGIT_BYTES, STREAMS, memory_of_layer, traffic_seconds, vocabulary

VERSION = 2
CONSUMES = (CHECKPOINT,)
PRODUCES = METRICS_ONLY
REQUIRES = ()
METRICS = {"groups": metric_ranges.COUNT, "loss/<candidate>": metric_ranges.AMOUNT}

FORMAT = "pack-quantized"  # its scales have the type of the weights; every format of integers stores the same values
_ROUNDED_WEIGHTS = 12e6  # weights that one core rounds on a searched grid in a second (measured)


def candidates(params: Params) -> dict[str, Params]:
    """Return name → how weights are stored, or how many become zero, of every candidate in rising order."""
    if params["sparsities"]:
        return {f"{each:g}": {"sparsity": each, "pattern": "unstructured"} for each in sorted(params["sparsities"])}
    same = {"group_size": params["group_size"], "symmetric": params["symmetric"], "format": FORMAT}
    return {str(bits): {"bits": bits, **same} for bits in sorted(params["candidates"])}


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would measure those")
    found += layerwise.unmatched(params, facts, ("ignore",))
    if not chosen(params, facts):
        found.append(Diagnostic("R410", "`ignore` leaves no linear module to measure", path=("ignore",)))
    measure = params["measure"]
    if measure != "output_error" and any(site.is_expert for site in chosen(params, facts)):
        message = f"`measure: {measure}` runs the model as a whole, and experts are read one at a time"
        help = 'use `measure: output_error`, or leave them out: `ignore: [lm_head, "*.experts.*"]`'
        found.append(Diagnostic("R816", message, help, path=("measure",)))
    if measure != "output_error" and facts.description is not None and facts.description.hands_state:
        message = f"the layers of `{facts.source}` hand one another keys and values: none can be run by itself"
        found.append(Diagnostic("R816", message, "use `measure: output_error`", path=("measure",)))
    if not params["sparsities"]:
        grouped = integers(min(params["candidates"]), params["group_size"], bool(params["symmetric"]))
        found += storage_refusals.uneven_groups((site, grouped) for site in chosen(params, facts))
    return found


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost: the stream, rounding for each candidate, and for two measures the model in memory."""
    facts, machine, data = inputs.checkpoint, inputs.machine, inputs.data["data"]
    cost = layerwise.estimate(LayerMethod(solve, statistics="hessian"), {**params, "true_sequential": False}, inputs)
    weights, count = sum(site.size for site in chosen(params, facts)), len(candidates(params))
    copied = cost.disk
    seconds = cost.seconds - 2 * copied / machine.disk_bytes_per_second
    seconds += count * weights / (_ROUNDED_WEIGHTS * machine.cpus)
    seconds += 2 * sum(s.rows * s.columns**2 for s in facts.sites) * (count + 1) / machine.flops
    if params["solver"] == "gptq":
        seconds += count * solving_seconds(facts, machine)
    cost = Cost(cost.memory, 0, cost.scratch - copied, seconds)
    if params["measure"] == "output_error":
        return cost
    return _in_memory(params, inputs, cost, data.tokens * 2 * (weights + facts.config.hidden_size * vocabulary(facts)))


def _in_memory(params: Params, inputs: Inputs, cost: Cost, forward: float) -> Cost:
    """Return the cost with passes through a model that is in memory in float32; `forward` is the operations of one."""
    facts, machine, data = inputs.checkpoint, inputs.machine, inputs.data["data"]
    value, length = 4, data.sequence_length
    held = value * facts.parameters + memory_budget.batch_bytes(facts, length, value, machine.device)
    held += memory_budget.RUNTIME + 4 * memory_budget.LOGIT_BYTES
    scratch = cost.scratch + value * data.tokens * facts.config.hidden_size * (facts.layer_count + 1)
    chosen_sites = list(chosen(params, facts))
    if params["measure"] == "gradient":
        tokens = max(memory_budget.batch_tokens(machine.device, memory_budget.widest(facts)), length)
        held += round(tokens * facts.layer_count * memory_of_layer(facts, value))
        moved = STREAMS * (memory_of_layer(facts, value) * facts.layer_count + vocabulary(facts) * LOGIT_BYTES)
        backward = 3 * forward / machine.flops + data.tokens * traffic_seconds(moved, inputs)
        return Cost(max(cost.memory, held), 0, scratch, cost.seconds + backward)
    trials = len(candidates(params)) * len(groups(chosen_sites, fused=not params["sparsities"]))
    scratch += len(candidates(params)) * sum(facts.tensors[site.tensor].nbytes for site in chosen_sites)
    return Cost(max(cost.memory, held), 0, scratch, cost.seconds + (trials / 2 + 1) * forward / machine.flops)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the checkpoint that is measured, with what is measured of it."""
    names = tuple(site.name for site in chosen(params, inputs.checkpoint))
    measured = {"candidates": candidates(params), "sites": names}
    return replace(inputs.checkpoint, measured=measured)


def run(ctx: Context) -> Result:
    from runner.steps import sensitivity_measures

    return sensitivity_measures.run(ctx, candidates(ctx.params))
