"""Whether groups of columns fit a weight. Imports no torch."""

from __future__ import annotations

from runner.model.checkpoint.quantization.format import Matrix, Refusal
from runner.model.checkpoint.quantization.scheme import Scheme

USUAL = (16, 32, 64, 128, 256, 512, 1024)


def refuse_uneven(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    """Readers do not load a weight whose last group is short; the group sizes that would do."""
    group, columns = scheme.group_size, matrix.columns
    if not isinstance(group, int) or columns % group == 0:
        return None
    divisors = [size for size in USUAL if columns % size == 0]
    other = f"group_size {' or '.join(map(str, divisors[-3:]))}" if divisors else 'group_size: "channel"'
    return Refusal(f"has {columns} columns, which group_size {group} does not divide", f"use {other}")
