from __future__ import annotations

import math

import pytest

from runner.progress import units


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0.0 s"), (0.04, "0.0 s"), (12.34, "12.3 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s"),
    (3599.6, "1 h 00 min"), (11220, "3 h 07 min"), (math.nan, "?"), (-1, "0.0 s"),
])  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0.2, "< 1 s"), (1, "~1 s"), (89.4, "~89 s"), (90, "~2 min"), (5399, "~90 min"), (5400, "~1.5 h"), (2e5, "~2 days"),
])  # fmt: skip
def test_about(seconds: float, text: str) -> None:
    assert units.about(seconds) == text


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9994, "9.99 kB"), (9996, "10.0 kB"), (99_960, "100 kB"),
    (999_600, "1.00 MB"), (1_530_000_000, "1.53 GB"), (4.2e15, "4200 TB"),
])  # fmt: skip
def test_size(count: float, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(("value", "text"), [(512, "512"), (68_300, "68.3 k"), (7.24e9, "7.24 B")])
def test_count(value: float, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(("value", "text"), [
    (15.374218, "15.374"), (262144, "262144"), (3.0, "3"), (0.000012345, "1.2345e-05"), (math.inf, "inf"),
])  # fmt: skip
def test_number(value: object, text: str) -> None:
    assert units.number(value) == text


def test_metrics_leave_out_what_was_only_counted() -> None:
    assert units.metrics([("top1_agreement", 0.98765), ("tokens", 4096), ("bytes", 3.5e6)]) == (
        "top1 agreement 0.98765, size 3.50 MB"
    )


@pytest.mark.parametrize(("values", "text"), [
    ([], ""), ([0, 0], "▁▁"), ([0, 0.5, 1], "▁▅█"), ([1, None, math.nan], "█ !"), ([1] * 100, "██████████"),
])  # fmt: skip
def test_sparkline(values: list[float | None], text: str) -> None:
    assert units.sparkline(values, width=10) == text
