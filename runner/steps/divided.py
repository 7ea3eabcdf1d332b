"""Steps whose work several processes share: what is refused, and what it costs. Imported by the planner: no torch."""

from __future__ import annotations

from dataclasses import replace

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Cost, Inputs
from runner.errors import Diagnostic
from runner.model.layerwise import memory_budget
from runner.model.layerwise.stream_run import PARTS

STARTING = 5.0  # seconds until a further process has its libraries


def check(inputs: Inputs) -> list[Diagnostic]:
    """Return complaints about `resources: {processes: N}`."""
    asked, machine = inputs.processes, inputs.machine
    if asked == 1:
        return []
    text = f"`resources: {{processes: {asked}}}`"
    if asked > PARTS:
        message = f"{text} is more than the {PARTS} parts that the batches of a step are divided into"
        return [Diagnostic("R714", message, f"use at most {PARTS}")]
    if machine.device == "mps":
        message = f"{text}: on an Apple GPU one process runs a step"
        return [Diagnostic("R714", message, "leave `processes` out, or use `--device cpu`")]
    if machine.device == "cpu" and asked > machine.cpus:
        cores = "1 core" if machine.cpus == 1 else f"{machine.cpus} cores"
        return [Diagnostic("R484", f"{text} is more than the {cores} of the machine", f"use at most {machine.cpus}")]
    return []


def refuse_mixtures(inputs: Inputs) -> list[Diagnostic]:
    """Return a complaint about processes that would change the experts of a mixture, which one process does."""
    if inputs.processes == 1 or not inputs.checkpoint.linears.mixtures:
        return []
    message = f"`resources: {{processes: {inputs.processes}}}`: the experts of a mixture are changed by one process"
    return [Diagnostic("R713", message, "leave `processes` out")]


def shared(cost: Cost, inputs: Inputs, sums: int = 0) -> Cost:
    """Return what a step costs that one process would do for `cost`; a further one holds `sums` bytes of statistics."""
    more = inputs.processes - 1
    if not more:
        return cost
    facts, device = inputs.checkpoint, inputs.machine.device
    value = memory_budget.compute_bytes(facts, device)
    own = memory_budget.RUNTIME
    if device == "cpu":
        data = inputs.data["data"]
        own += max(memory_budget.layer_bytes(facts, value), memory_budget.rest_bytes(facts, value))
        own += memory_budget.batch_bytes(facts, data.sequence_length, value, device) + sums
    else:
        own += memory_budget.CUDA_RUNTIME
    return replace(cost, memory=cost.memory + more * own, seconds=cost.seconds + STARTING)


def widest_sum(facts: CheckpointFacts, matrices: int) -> int:
    """Return the bytes of that many float32 second moments of the widest input."""
    return 4 * memory_budget.widest(facts) ** 2 * matrices
