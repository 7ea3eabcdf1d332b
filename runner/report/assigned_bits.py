"""Bits that `bits: auto` assigned to modules, as plans and reports show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from runner.progress import units


def parse(details: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the assignment in the details of a record; None where there is none."""
    found = details.get("assignment")
    return found if isinstance(found, Mapping) and isinstance(found.get("bits"), Mapping) else None


def line(assignment: Mapping[str, Any]) -> str:
    """Return `2 bits in 4 modules, 4 bits in 38 modules; 3.5 bits a weight, forecast loss 0.04 nats per token`."""
    counts = Counter(assignment["bits"].values())
    parts = ", ".join(f"{bits} bits in {units.plural(counts[bits], 'module')}" for bits in sorted(counts))
    loss = f"forecast loss {assignment['loss']:.4g} {assignment['unit']}"
    return f"{parts}; {assignment['average_bits']:.3f} bits a weight with scales, {loss}"
