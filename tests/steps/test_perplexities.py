"""Perplexity from the mean loss of a token."""

from __future__ import annotations

import math

import pytest

from runner.errors import StepFailed
from runner.steps.perplexities import perplexity


def test_of_losses() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(15.5)) == pytest.approx(15.5)
    assert perplexity(709.0) < math.inf
    assert perplexity(1e4) == perplexity(math.inf) == math.inf


def test_of_no_number() -> None:
    with pytest.raises(StepFailed, match=r"^the loss is NaN: the logits are$"):
        perplexity(math.nan)
