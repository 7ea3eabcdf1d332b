"""Intervals of means: how often they hold the true one, in simulations whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runner.job.intervals import interval

Values = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[np.random.Generator], Values]


def _paired_answers(draw: np.random.Generator) -> Values:
    """Right or wrong before less after, where a fifth of the answers turn: the mean is 0.2 × (2 × 0.8 − 1)."""
    before = draw.random(80) < 0.8
    after = np.where(draw.random(80) < 0.2, ~before, before)
    differences: Values = before.astype(np.float64) - after.astype(np.float64)
    return differences


@pytest.mark.parametrize(
    ("draw", "true", "ends"),
    [
        (lambda draw: draw.normal(0.02, 0.1, 24), 0.02, ()),
        (lambda draw: draw.lognormal(0, 0.5, 32), math.exp(0.125), ()),
        (_paired_answers, 0.12, (-1, 1)),
        (lambda draw: (draw.random(40) < 0.85).astype(float), 0.85, (0, 0, 1, 1)),
    ],
    ids=["differences", "skewed", "paired answers", "answers"],
)
def test_95_percent_of_the_intervals_hold_the_mean(draw: Draw, true: float, ends: tuple[float, ...]) -> None:
    source = np.random.default_rng(3)
    held = 0
    for _ in range(1000):
        low, high = interval(list(draw(source)), 0.95, ends=ends, resamples=499)
        held += low <= true <= high
    assert 930 <= held <= 970


def test_a_wider_confidence_has_a_wider_interval_and_the_same_values_the_same() -> None:
    values = list(np.random.default_rng(0).normal(0, 1, 50))
    narrow, wide = interval(values, 0.8), interval(values, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert interval(values, 0.8) == narrow


def test_near_the_t_interval_where_values_are_normal() -> None:
    values = np.random.default_rng(5).normal(3, 2, 200)
    half = 1.97196 * values.std(ddof=1) / math.sqrt(200)  # the quantile of Student's t with 199 degrees of freedom
    assert interval(list(values), 0.95) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_equal_answers_are_not_certain_and_equal_losses_are() -> None:
    low, high = interval([1.0] * 10, 0.95, ends=(0, 0, 1, 1))
    assert low < 0.75
    assert high <= 1
    assert interval([0.5] * 10, 0.95) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_too_few_values_say_nothing(values: list[float]) -> None:
    assert interval(values, 0.95) == (-math.inf, math.inf)
