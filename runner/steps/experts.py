"""Mixtures of experts as steps see them: what they refuse of them, and what is counted. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.metric_ranges import AMOUNT
from runner.contracts.sites import Site
from runner.errors import Diagnostic
from runner.steps.targets import scheme

# METRICS of a kind that changes experts by what their tokens say.
EXPERTS = {"experts": AMOUNT, "experts_below_floor": AMOUNT, "expert_tokens_min": AMOUNT}
# What the stream notes of the matrices of an expert: the tokens routed to it, and whether they were too few.
EXPERT_METRICS = ("tokens", "below_floor")
LEAVE = 'leave them as they are: `ignore: [lm_head, "*.experts.*"]`'


def refuse(
    params: Mapping[str, Any], own: Mapping[Site, Mapping[str, Any]], facts: CheckpointFacts
) -> list[Diagnostic]:
    """Return complaints about experts that cannot be changed as asked."""
    experts = [site for site in own if site.is_expert]
    if not experts:
        return []
    found = []
    if not params.get("true_sequential", True):
        message = "the experts of a mixture are calibrated one matrix after another; `true_sequential: false` is not"
        found.append(Diagnostic("R603", message, "leave it out", path=("true_sequential",)))
    packed = {site.name for site in experts if scheme(own[site]) is not None}
    for mixture in facts.linears.mixtures:
        if mixture.unpackable and not packed.isdisjoint(_names(mixture.matrices, mixture.experts)):
            message = f"the experts `{mixture.name}` cannot be stored packed: {mixture.unpackable}"
            found.append(Diagnostic("R602", message, f"{LEAVE}, or prune them", path=("ignore",)))
            break
    return found + _split(packed, facts)


def _names(matrices: Sequence[Any], experts: int) -> list[str]:
    return [each.name.format(expert) for each in matrices for expert in range(experts)]


def _split(packed: set[str], facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint about a tensor of several experts of which only some are to be packed."""
    held: dict[str, list[str]] = {}
    for site in facts.sites:
        if site.index is not None:
            held.setdefault(site.tensor, []).append(site.name)
    for tensor, names in held.items():
        left = [name for name in names if name not in packed]
        if left and len(left) < len(names):
            message = f"`{tensor}` holds all experts of a layer, and `{left[0]}` is not to be packed with the others"
            return [Diagnostic("R604", message, "leave out all of them, or none", path=("ignore",))]
    return []


def expert_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how many experts a step changed, how many saw too few tokens, and the fewest that one saw.

    Empty where no expert was changed by what tokens say.
    """
    seen: dict[str, tuple[float, float]] = {}
    for layer in results:
        for name, module in layer["modules"].items():
            if "tokens" in module:
                expert = name.rpartition(".")[0]
                _, below = seen.get(expert, (0.0, 0.0))
                seen[expert] = module["tokens"], max(below, module["below_floor"])
    if not seen:
        return {}
    return {
        "experts": len(seen),
        "experts_below_floor": int(sum(below for _, below in seen.values())),
        "expert_tokens_min": int(min(tokens for tokens, _ in seen.values())),
    }
