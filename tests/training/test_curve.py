"""The loss curve: thinned to what a record bears, the same after a resume."""

from __future__ import annotations

import json
import math

import pytest

from runner.training.curve import POINTS, Curve


def fed(curve: Curve, first: int, last: int) -> Curve:
    for step in range(first, last + 1):
        curve.add(step, float(step), 0.1, {})
    return curve


def test_a_short_training_keeps_every_step() -> None:
    curve = Curve(3)
    curve.add(1, 4.0, 0.1, {"hard": 5.0})
    curve.add(2, 3.0, 0.2, {})
    assert curve.points == [
        {"step": 1, "loss": 4.0, "learning_rate": 0.1, "parts": {"hard": 5.0}},
        {"step": 2, "loss": 3.0, "learning_rate": 0.2},
    ]


@pytest.mark.parametrize("steps", [499, 500, 1234, 100_000])
def test_a_long_one_keeps_means_of_equal_stretches(steps: int) -> None:
    curve = fed(Curve(steps), 1, steps)
    assert len(curve.points) <= POINTS
    assert curve.points[-1]["step"] == steps
    ends = [0, *(point["step"] for point in curve.points)]
    for begin, end, point in zip(ends, ends[1:], curve.points, strict=False):
        assert point["loss"] == pytest.approx((begin + 1 + end) / 2)


def test_a_curve_that_went_through_json_goes_on_as_if_it_had_not() -> None:
    whole = fed(Curve(1234), 1, 1234)
    half = Curve.from_json(json.loads(json.dumps(fed(Curve(1234), 1, 601).to_json())))
    assert fed(half, 602, 1234) == whole


def test_the_smoothed_loss_weighs_the_latest_most() -> None:
    assert math.isnan(Curve(9).smoothed)
    curve = fed(Curve(9), 1, 9)
    weights = [0.95 ** (9 - step) for step in range(1, 10)]
    assert curve.smoothed == pytest.approx(
        sum(w * s for w, s in zip(weights, range(1, 10), strict=True)) / sum(weights)
    )


def test_the_best_evaluation_and_how_long_ago_it_was() -> None:
    curve = Curve(9)
    assert [curve.add_evaluation(step, loss) for step, loss in ((0, 3.0), (2, 2.5), (4, 2.5), (6, 2.6))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (curve.best_step, curve.best_loss, curve.stale) == (2, 2.5, 2)
