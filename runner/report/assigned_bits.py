"""Bits or sparsities that `auto` assigned to modules, as plans and reports show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from runner.progress import units
from runner.steps.assignment import BITS, SPARSITY


def parse(details: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the assignment in the details of a record; None where there is none."""
    found = details.get("assignment")
    return found if isinstance(found, Mapping) and isinstance(found.get(target(found)), Mapping) else None


def target(assignment: Mapping[str, Any]) -> str:
    """Return what was assigned: "bits" or "sparsity"."""
    return SPARSITY if SPARSITY in assignment else BITS


def line(assignment: Mapping[str, Any]) -> str:
    """Return `2 bits in 4 modules, 4 bits in 38 modules; 3.5 bits a weight, forecast loss 0.04 nats per token`."""
    loss = f"forecast loss {assignment['loss']:.4g} {assignment['unit']}"
    counts = Counter(assignment[target(assignment)].values())
    if target(assignment) == SPARSITY:
        parts = ", ".join(f"{each:g} in {units.plural(counts[each], 'module')}" for each in sorted(counts))
        return f"sparsities {parts}; {assignment['average_sparsity']:.3f} on average, {loss}"
    parts = ", ".join(f"{bits} bits in {units.plural(counts[bits], 'module')}" for bits in sorted(counts))
    return f"{parts}; {assignment['average_bits']:.3f} bits a weight with scales, {loss}"
