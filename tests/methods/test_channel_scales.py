"""Scales of channels against naive float64 versions of the papers' formulas."""

from __future__ import annotations

import pytest
import torch

from runner.methods.channel_scales import Chosen, awq_candidates, search, smooth_scales, weight_sizes

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


def test_candidates_are_those_of_the_paper() -> None:
    sizes = weight_sizes(WEIGHTS, 4)
    found = list(awq_candidates(INPUTS, sizes, steps=4))
    assert len(found) == 5
    for step, scales in enumerate(found):
        ratio = step / 4
        raw = [float(x) ** ratio / (float(w) ** (1 - ratio) + 1e-4) for x, w in zip(INPUTS, sizes, strict=True)]
        expected = torch.tensor(raw) / (max(raw) * min(raw)) ** 0.5
        torch.testing.assert_close(scales, expected)
        assert float(scales.max() * scales.min()) == pytest.approx(1)


def test_the_search_keeps_the_first_of_the_least_cost_and_nothing_where_nothing_helps() -> None:
    one, two = torch.ones(2), torch.full((2,), 2.0)
    costs = {1.0: 0.5, 2.0: 0.5}
    found = search(iter([one, two]), lambda scales: 1.0 if scales is None else costs[float(scales[0])])
    assert found.scales is one
    assert (found.cost, found.before) == (0.5, 1.0)
    assert search(iter([one]), lambda scales: 1.0) == Chosen(None, 1.0, 1.0)
