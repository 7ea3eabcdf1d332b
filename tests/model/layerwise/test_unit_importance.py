"""Scores of units against naive loops."""

from __future__ import annotations

import math

import pytest
import torch

from runner.model.layerwise.unit_importance import lost, top, top_heads, window_scores


@pytest.mark.parametrize("aggregation", ["mean", "l2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_scores_are_those_of_a_loop(aggregation: str, channels: int) -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    found = window_scores(x, aggregation, channels)
    for window in range(2):
        for unit in range(6 // channels):
            sizes = [
                math.sqrt(sum(float(x[window, token, unit * channels + c]) ** 2 for c in range(channels)))
                for token in range(5)
            ]
            mean = sum(sizes) / 5 if aggregation == "mean" else math.sqrt(sum(size**2 for size in sizes) / 5)
            assert float(found[window, unit]) == pytest.approx(mean, rel=1e-6)


def test_the_best_stay_in_their_order() -> None:
    assert top(torch.tensor([0.1, 0.5, 0.3, 0.5]), 2) == [1, 3]
    assert top(torch.tensor([0.2, 0.2, 0.2]), 2) == [0, 1]
    heads = torch.tensor([1.0, 3.0, 9.0, 1.0, 2.0, 5.0])
    assert top_heads(heads, torch.zeros(3), 2, 1) == ([2, 5], [1, 2])
    assert top_heads(heads, torch.tensor([9.0, 0.0, 0.0]), 2, 2) == ([0, 1, 2, 3], [0, 1])


def test_what_is_lost() -> None:
    assert lost(torch.tensor([3.0, 4.0]), [1]) == pytest.approx(9 / 25)
    assert lost(torch.zeros(2), [0]) == 0
