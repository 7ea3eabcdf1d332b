"""The values that a metric can have, so that a gate that no value can pass or miss is found before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, both included; without bounds where nothing is known of a metric."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if math.isinf(self.low) else f"from {self.low:g} to {self.high:g}"


UNKNOWN = Range()
SHARE = Range(0, 1)  # a part of all: agreement, sparsity
AMOUNT = Range(0)  # seconds, bytes, rates, divergences, losses
COUNT = Range(1)  # of what is there at least once: tokens, windows
PERPLEXITY = Range(1)  # the exponential of a mean that is not negative
TRAINING = {"loss": AMOUNT, "evaluation_loss": AMOUNT, "steps": COUNT, "tokens": COUNT}  # of every kind that trains
