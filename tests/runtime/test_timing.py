"""The figures of `evaluate.latency`."""

from __future__ import annotations

from runner.runtime.timing import rate


def test_rate_is_of_the_median_and_spread_of_the_ends() -> None:
    assert rate(100, [1.0, 4.0, 2.0]) == (50.0, 1.5)
    assert rate(10, [0.5]) == (20.0, 0.0)
