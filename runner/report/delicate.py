"""What a measurement of sensitivity says in words: which groups of modules are delicate, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from runner.contracts.sensitivity import Group, Sensitivity
from runner.progress import units
from runner.steps.site_groups import label

SHOWN = 3
_OUTLIERS, _TIMES = 4.0, 1.5  # a column this much above the median; a fact this much above that of most modules


def parse(details: Mapping[str, Any]) -> Sensitivity | None:
    """Return the measurement in the details of a record; None where there is none of the expected form."""
    found = details.get("sensitivity")
    try:
        return Sensitivity.from_json(found) if isinstance(found, Mapping) else None
    except (KeyError, TypeError, ValueError):
        return None


def of_sparsities(found: Sensitivity) -> bool:
    """Return whether sparsities were measured, in place of bits."""
    return any("sparsity" in each for each in found.candidates.values())


def fewest(found: Sensitivity) -> str:
    """Return the candidate with the fewest bits or the largest sparsity, at which groups differ most."""
    if of_sparsities(found):
        return max(found.candidates, key=lambda name: float(found.candidates[name]["sparsity"]))
    return min(found.candidates, key=lambda name: float(found.candidates[name]["bits"]))


def named(found: Sensitivity) -> str:
    """Return that candidate in words: `2 bits`, `sparsity 0.7`."""
    return f"sparsity {fewest(found)}" if of_sparsities(found) else f"{fewest(found)} bits"


def ranked(found: Sensitivity) -> list[Group]:
    """Return the groups from the most delicate one: by their loss a weight with the fewest bits."""
    least = fewest(found)
    return sorted(found.groups, key=lambda group: -group.losses[least] / group.weights)


def sentences(found: Sensitivity) -> list[str]:
    """Return a sentence on each of the most delicate groups, and one on the least delicate group."""
    least, order = fewest(found), ranked(found)
    total, weights = math.fsum(g.losses[least] for g in order), sum(g.weights for g in order)
    if len(order) < 2 or total <= 0:
        return []
    lines = []
    for group in order[:SHOWN]:
        why = "; ".join(reasons(group, found)) or _otherwise(found)
        part = f"{group.losses[least] / total:.1%} of the loss at {named(found)} with {group.weights / weights:.1%}"
        lines.append(f"{label(list(group.sites))} is delicate, {part} of the weights: {why}.")
    last = order[-1]
    ratio = (order[0].losses[least] / order[0].weights) / max(last.losses[least] / last.weights, 1e-300)
    best = "zeros" if of_sparsities(found) else "the fewest bits"
    less = f"{ratio:.3g} times less a weight than the first"
    lines.append(f"{label(list(last.sites))} bears {best} best: {less}.")
    return lines


def reasons(group: Group, found: Sensitivity) -> list[str]:
    """Return why a group is delicate, as clauses: what its inputs and weights have more of than most modules."""
    sites = [site for other in found.groups for site in other.sites.values()]
    inputs = [site.inputs for site in sites if site.inputs is not None]
    clauses = []
    seen = [site for site in group.sites.values() if site.inputs is None]
    if seen:
        clauses.append(f"{len(seen)} of its {len(group.sites)} matrices saw too few tokens to calibrate")
    own = [site.inputs for site in group.sites.values() if site.inputs is not None]
    if own:
        worst = max(own, key=lambda each: each.outliers)
        if worst.outliers >= max(_OUTLIERS, _TIMES * median(each.outliers for each in inputs)):
            clauses.append(f"its inputs have outliers, a column {worst.outliers:.3g} times the median one")
        fewest_columns = min(own, key=lambda each: each.effective_columns / each.columns)
        usual = median(each.effective_columns / each.columns for each in inputs)
        if fewest_columns.effective_columns / fewest_columns.columns * _TIMES <= usual:
            effective = units.number(round(fewest_columns.effective_columns, 1))
            clauses.append(f"its inputs amount to {effective} effective columns of {fewest_columns.columns}")
    least = fewest(found)
    error, others = max(s.errors[least] for s in group.sites.values()), median(s.errors[least] for s in sites)
    if error >= _TIMES * others > 0:
        cause = "pruning" if of_sparsities(found) else "rounding"
        clauses.append(f"{cause} changes its outputs by {error:.2%}, those of most modules by {others:.2%}")
    return clauses


def _otherwise(found: Sensitivity) -> str:
    if found.measure == "output_error":
        return "its outputs change more for its size"
    return "the model's predictions depend on it more, at a usual error of its outputs"


def losses(found: Sensitivity, place: Sequence[str]) -> dict[tuple[str, int], float]:
    """Return (place in the layer, layer) → loss a weight with the fewest bits, places in the order of the groups."""
    least = fewest(found)
    return {
        (name, group.layer): group.losses[least] / group.weights
        for name, group in zip(place, found.groups, strict=True)
    }
