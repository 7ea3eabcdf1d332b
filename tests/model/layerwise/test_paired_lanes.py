"""How many batches run through the unchanged model as well."""

from __future__ import annotations

import pytest

from runner.model.layerwise.paired_lanes import PairedLanes, paired_lanes


@pytest.mark.parametrize(
    ("statistics", "every", "learns", "experts", "expected", "forwards"),
    [
        ("hessian", 4, False, False, PairedLanes(1, 1, 1), 1),
        ("cross", 4, False, False, PairedLanes(2, 4, 4), 1.25),
        ("cross", 1, False, False, PairedLanes(2, 1, 1), 2),
        ("cross", 4, False, True, PairedLanes(2, 1, 1), 2),
        ("cross", 4, True, False, PairedLanes(2, 1, 4), 2),
        ("hessian", 1, True, False, PairedLanes(2, 1, 1), 2),
    ],
)
def test_some_batches_are_compared(
    statistics: str, every: int, learns: bool, experts: bool, expected: PairedLanes, forwards: float
) -> None:
    found = paired_lanes(statistics, every, learns=learns, has_experts=experts)
    assert found == expected
    assert found.forwards == forwards
