"""SignRound (Cheng et al. 2023): rounding and scales learned from gradients of the output of each decoder layer.

The maths is in runner/methods/signround.py. The start is GPTQ's solution, or the nearest points of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, Cost, Inputs, Params
from runner.model.layerwise import memory_budget
from runner.model.layerwise.method import Block, Linear, Statistics, Transformed
from runner.steps import automatic, gptq_solver
from runner.steps.gptq_solver import solving_seconds
from runner.steps.layer_method import ERRORS
from runner.steps.layerwise import LayerMethod, bind
from runner.steps.targets import stored_scheme, ways

VERSION = 3
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = ERRORS

_MOVED_WEIGHTS = 60e6  # weights whose positions one core moves in a second (measured)


def wanted(params: Params) -> str:
    """Return the statistic of the start; that of rounding weighs errors by the size of the inputs."""
    if params["start"] == "gptq":
        return gptq_solver.wanted(params)
    if params["grid"] == "weighted_mse":
        return "input_norms"
    return "input_range" if any(own.calibrated for own in ways(params)) else "none"


def transform(linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Return where learning starts: codes, and the positions that they were rounded from."""
    if params["start"] == "gptq":
        return gptq_solver.solve(linear, statistics, params, positions=True)
    from runner.methods.quantization_grid import in_steps, make_grid, round_to_grid
    from runner.methods.quantization_scheme import stored_levels, with_input_scale

    scheme, norms = stored_scheme(params), statistics.input_norms
    levels = stored_levels(scheme, params["format"], linear.dtype)
    importance = None if norms is None else norms.square()
    grid = make_grid(linear.weight, levels, params["grid"], importance, linear.largest)
    quantized = round_to_grid(linear.weight, grid)
    quantized = with_input_scale(quantized, scheme, statistics.largest_input, linear.dtype)
    return Transformed(quantized=quantized, positions=in_steps(linear.weight, grid))


def learn(
    block: Block, changed: Mapping[str, Transformed], options: Mapping[str, Params], seed: int
) -> dict[str, Transformed]:
    """Learn the roundings of a layer; keep the start where they are no better."""
    from runner.methods import signround
    from runner.methods.quantization_grid import grid_of

    roundings = {}
    for name, start in changed.items():
        if start.quantized is None or start.positions is None:
            raise ValueError("a start has codes and positions")
        scheme = stored_scheme(options[name])
        if scheme.activations is not None:
            block.round_inputs(name, scheme.activations, start.quantized.input_scale)
        roundings[name] = signround.Rounding(start.positions, grid_of(start.quantized, scheme.weights))
    params = next(iter(options.values()))
    schedule = signround.Schedule(params["steps"], params["offset_range"], params["scale_range"])
    learned = signround.learn(block, roundings, schedule, seed + block.index)
    metrics = {"error": min(learned.before, learned.after) if learned.better else learned.before,
               "error_before": learned.before}  # fmt: skip
    found = {}
    for name, start in changed.items():
        quantized = start.quantized
        if learned.better and quantized is not None:
            quantized = replace(roundings[name].quantized(), input_scale=quantized.input_scale)
        found[name] = Transformed(quantized=quantized, metrics=metrics)
    return found


method = LayerMethod(transform, statistics=wanted, stacked=True, block=learn)
check, _stream_estimate, outcome, run = bind(method)
environment, unsettled = automatic.environment, automatic.unsettled


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost of the stream with two lanes, and of learning: one layer and one batch with gradients."""
    facts, machine = inputs.checkpoint, inputs.machine
    cost = _stream_estimate(params, inputs)
    value = memory_budget.compute_bytes(facts, machine.device)
    length = inputs.data["data"].sequence_length
    tokens = max(memory_budget.batch_tokens(machine.device, memory_budget.widest(facts)), length)
    weights = memory_budget.layer_weights(facts)
    positions = 5 * weights  # and the codes of the start
    peak = memory_budget.RUNTIME + positions + 3 * weights * value + gradient_bytes(facts, tokens, length, value)
    memory = cost.memory + positions if machine.device == "cpu" else cost.memory
    seconds = cost.seconds + solving_seconds(facts, machine) if params["start"] == "gptq" else cost.seconds
    layers = max(1, facts.layer_count)
    learning = params["steps"] * (6 * tokens * weights / machine.flops + weights / (_MOVED_WEIGHTS * machine.cpus))
    again = 2 * inputs.data["data"].tokens * sum(site.size for site in facts.sites) / machine.flops
    return replace(cost, memory=max(memory, peak), seconds=seconds + layers * learning + again)


def gradient_bytes(facts: CheckpointFacts, tokens: int, length: int, value: int) -> int:
    """Return the bytes of what a layer keeps of a batch for its gradients.

    Of every token the inputs and outputs of its linears, twice in the norms and functions between them, and in the
    attention of windows of `length` the weights of each head; measured on Llama, to a fifth.
    """
    layer = [site for site in facts.sites if site.layer == 0]
    wide = sum(site.rows for site in layer) + sum({site.columns for site in layer})
    heads = facts.config.heads
    return tokens * (value * (2 * wide + heads * length) + 4 * 6 * facts.config.hidden_size)
