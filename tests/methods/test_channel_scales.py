"""Scales of channels against naive float64 versions of the papers' formulas."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from runner.methods.channel_scales import Chosen, awq_scales, search, smooth_scales, weight_sizes

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.rand(12, generator=GENERATOR) + 0.1
WEIGHTS = [torch.randn(5, 12, generator=GENERATOR), torch.randn(3, 12, generator=GENERATOR)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_smooth_scales_are_equation_4(alpha: float) -> None:
    largest = torch.cat(WEIGHTS).abs().amax(0)
    expected = [float(x) ** alpha / float(w) ** (1 - alpha) for x, w in zip(INPUTS, largest, strict=True)]
    torch.testing.assert_close(smooth_scales(INPUTS, largest, alpha), torch.tensor(expected))


def test_columns_without_inputs_or_weights_stay() -> None:
    found = smooth_scales(torch.tensor([0.0, 4.0, 4.0, 1e-30]), torch.tensor([1.0, 0.0, 1.0, 1.0]), 0.5)
    assert found.tolist() == pytest.approx([1.0, 1.0, 2.0, 1e-5])


@pytest.mark.parametrize("group", [4, 5, 12])
def test_weight_sizes_are_relative_to_the_largest_of_a_group(group: int) -> None:
    rows = torch.cat(WEIGHTS).double()
    expected = []
    for column in range(12):
        start = column // group * group
        shares = [float(abs(row[column]) / row[start : start + group].abs().max()) for row in rows]
        expected.append(sum(shares) / len(shares))
    torch.testing.assert_close(weight_sizes(WEIGHTS, group), torch.tensor(expected))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_awq_scales_are_those_of_the_paper(ratio: float) -> None:
    sizes = weight_sizes(WEIGHTS, 4)
    raw = [float(x) ** ratio / (float(w) ** (1 - ratio) + 1e-4) for x, w in zip(INPUTS, sizes, strict=True)]
    scales = awq_scales(INPUTS, sizes, ratio)
    torch.testing.assert_close(scales, torch.tensor(raw) / (max(raw) * min(raw)) ** 0.5)
    assert float(scales.max() * scales.min()) == pytest.approx(1)


def cost(least: float, before: float, scales: torch.Tensor | None) -> float:
    return before if scales is None else abs(float(scales[0]) - least)


@pytest.mark.parametrize(("least", "found"), [(0.0, 0.0), (0.31, 0.3), (0.44, 0.45), (0.36, 0.35), (1.0, 1.0)])
def test_the_search_is_fine_around_the_best(least: float, found: float) -> None:
    tried: list[float] = []

    def scales(ratio: float) -> torch.Tensor:
        tried.append(ratio)
        return torch.full((2,), ratio)

    chosen = search(scales, partial(cost, least, 9.0))
    assert chosen.scales is not None
    assert float(chosen.scales[0]) == pytest.approx(found)
    assert chosen.cost == pytest.approx(abs(least - found), abs=1e-6)
    assert chosen.before == 9.0
    assert len(tried) == (12 if found in (0.0, 1.0) else 13)


def test_nothing_is_chosen_where_nothing_helps() -> None:
    assert search(lambda ratio: torch.full((2,), ratio), partial(cost, 0.0, 0.0)) == Chosen(None, 0.0, 0.0)
