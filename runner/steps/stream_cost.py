"""What the layer stream multiplies and holds, from the headers: parts of a forecast. Imports no torch."""

from __future__ import annotations

from collections import Counter

from runner.contracts.context import Params
from runner.contracts.facts import CheckpointFacts
from runner.steps.layer_method import LayerMethod


def working_bytes(weights: int) -> int:
    """Return the bytes of float32 copies while weights are solved: the weight, its working copy, its grid search."""
    return 4 * 4 * weights


def stacks(method: LayerMethod, facts: CheckpointFacts) -> dict[int, int]:
    """Return input width → the most weights solved at once.

    A method that stacks solves those that have one input together: q with k and v, gate with up. Linears of a layer
    whose roles say nothing may all have one where they have the same width.
    """
    found: dict[int, int] = {0: 0}
    together: dict[tuple[int, int, str], int] = {}
    for linear in facts.sites:
        first = "" if linear.role == "other" else min((linear.name, *linear.fused_with))
        key = (linear.layer, linear.columns, first)
        together[key] = linear.size + (together.get(key, 0) if method.stacked else 0)
        found[linear.columns] = max(found.get(linear.columns, 0), together[key])
    return found


def distinct_inputs(facts: CheckpointFacts) -> list[int]:
    """Return the widths of the distinct inputs of linears, over all layers.

    Of the linears of one width in a layer, two or three have the same input: in the usual block q, k and v, and gate
    and up, while the other two have inputs of their own.
    """
    plain = [linear for linear in facts.sites if not linear.is_expert]
    linears = Counter(linear.layer for linear in plain)
    alike = Counter((linear.layer, linear.columns) for linear in plain)
    groups = {key: count if linears[key[0]] <= 4 else (count + 1) // 2 for key, count in sorted(alike.items())}
    return [width for (_, width), count in groups.items() for _ in range(count)] + expert_inputs(facts)


def expert_inputs(facts: CheckpointFacts) -> list[int]:
    """Return the widths of the distinct inputs of experts, over all layers: each has one, and its last matrix one."""
    experts = (site for site in facts.sites if site.is_expert)
    return list({(site.expert, site.role == "expert_down"): site.columns for site in experts}.values())


def squares(params: Params, facts: CheckpointFacts) -> float:
    """Return the squared widths that the second moments of a token take; an expert sees a part of the tokens."""
    experts = sum(width**2 for width in expert_inputs(facts))
    all_inputs = sum(width**2 for width in distinct_inputs(facts))
    parts = [m.active / m.experts for m in facts.linears.mixtures if m.active and m.experts]
    share = sum(parts) / len(parts) if parts and params.get("experts") == "routed" else 1.0
    return all_inputs - experts + share * experts


def compared_every(params: Params) -> int:
    """Return of how many batches one runs through the unchanged model too, where only that is asked of it."""
    return max(1, round(1 / float(params.get("comparison_fraction", 1.0))))


def active_weights(facts: CheckpointFacts) -> int:
    """Return the weights that a token is multiplied by: of the experts of a layer, those that it is routed to."""
    parts = {m.layer: m.active / m.experts for m in facts.linears.mixtures if m.active and m.experts}
    return int(sum(site.size * (parts.get(site.layer, 1.0) if site.is_expert else 1.0) for site in facts.sites))
