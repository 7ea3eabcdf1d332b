"""The sparsity schedule of gradual pruning: the polynomial decay of Zhu & Gupta 2017 (arXiv:1710.01878), equation 1.

s(t) = s_f + (s_i − s_f) · (1 − (t − t₀) / (t₁ − t₀))^e         for t₀ ≤ t ≤ t₁, e = 3
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A schedule from `initial` sparsity at step `begin` to `final` at step `end`, applied every `every` steps."""

    initial: float
    final: float
    begin: int
    end: int
    every: int
    exponent: float

    def sparsity(self, step: int) -> float:
        """Return s(t) after optimizer step `step`: 0 before `begin`, `final` from `end` on."""
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return float(self.final + (self.initial - self.final) * left**self.exponent)

    def moves(self, step: int) -> bool:
        """Return whether masks are recomputed after this step: every `every` steps from `begin`, and once at `end`."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.every == 0
