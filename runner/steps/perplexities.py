"""Perplexity from the mean loss of a token."""

from __future__ import annotations

import math

from runner.errors import StepFailed

_LARGEST = math.log(1.7e308)  # of a loss whose exponential a float holds


def perplexity(loss: float) -> float:
    """Return exp(loss) of a mean loss in nats; infinity where no float holds it. StepFailed for a loss that is NaN."""
    if math.isnan(loss):
        raise StepFailed("the loss is NaN: the logits are", "check the output head of the checkpoint, and its dtype")
    return math.exp(loss) if loss < _LARGEST else math.inf
