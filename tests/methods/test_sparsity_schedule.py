"""Zhu & Gupta's schedule against its equation, and where masks move."""

from __future__ import annotations

import pytest

from runner.methods.sparsity_schedule import Schedule

SCHEDULE = Schedule(initial=0.1, final=0.5, begin=10, end=90, every=20, exponent=3)


@pytest.mark.parametrize(
    ("step", "sparsity"),
    [
        (9, 0.0),
        (10, 0.1),
        (30, 0.5 - 0.4 * 0.75**3),
        (50, 0.5 - 0.4 / 8),
        (89, 0.5 - 0.4 / 80**3),
        (90, 0.5),
        (200, 0.5),
    ],
)
def test_sparsity_follows_the_equation(step: int, sparsity: float) -> None:
    assert SCHEDULE.sparsity(step) == pytest.approx(sparsity, abs=1e-12)


def test_masks_move_on_the_schedule_and_once_at_its_end() -> None:
    assert [step for step in range(120) if SCHEDULE.moves(step)] == [10, 30, 50, 70, 90]
    uneven = Schedule(0.0, 0.5, 0, 50, 20, 3)
    assert [step for step in range(120) if uneven.moves(step)] == [0, 20, 40, 50]


def test_sparsity_never_falls() -> None:
    values = [SCHEDULE.sparsity(step) for step in range(10, 120)]
    assert values == sorted(values)
