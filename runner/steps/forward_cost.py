"""The cost of kinds that only run a checkpoint forward. Imported by the planner: no torch here."""

from __future__ import annotations

from collections.abc import Sequence

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Cost, DataFacts, Inputs, MachineFacts, Params
from runner.errors import Diagnostic
from runner.model.layerwise import memory_budget


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return no complaints: opening the model and the data has already checked everything."""
    return []


def estimate_forward(models: Sequence[CheckpointFacts], data: DataFacts, machine: MachineFacts) -> Cost:
    """Return the cost of one forward of all tokens through each model.

    In memory are one layer at a time, and the logits of a few windows.
    """
    peak, seconds, scratch = 0, 5.0, 0
    heads = 0
    for facts in models:
        value = memory_budget.compute_bytes(facts, machine.device)
        batch = memory_budget.batch_bytes(facts, data.sequence_length, value, machine.device)
        rest = memory_budget.rest_bytes(facts, value)
        heads += rest
        peak = max(peak, max(memory_budget.layer_bytes(facts, value), rest) + batch)
        weights = sum(i.size for i in facts.sites)
        head = facts.config.hidden_size * facts.config.vocabulary_size
        seconds += 2 * data.tokens * (weights + head) / machine.flops
        scratch += 2 * data.tokens * facts.config.hidden_size * value
    logits = memory_budget.LOGIT_BYTES * 3 + heads
    if machine.device != "cpu":  # batches and logits are on the card
        return Cost(memory_budget.RUNTIME + memory_budget.CUDA_RUNTIME + heads, 0, scratch, seconds)
    return Cost(memory_budget.RUNTIME + max(peak, logits), 0, scratch, seconds)
