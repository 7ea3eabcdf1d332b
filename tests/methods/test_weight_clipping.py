"""Clipping weights against a search of every group alone, in float64."""

from __future__ import annotations

import torch

from runner.methods.weight_clipping import RATIOS, clip


def rounded(weight: torch.Tensor) -> torch.Tensor:
    groups = weight.unflatten(1, (-1, 8))
    scale = groups.abs().amax(2, keepdim=True) / 3
    found: torch.Tensor = ((groups / scale).round().clamp(-3, 3) * scale).flatten(1)
    return found


def test_every_group_is_clipped_where_its_own_error_is_least() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(4, 16, generator=generator) ** 3, torch.randn(40, 16, generator=generator)
    found = clip(weight, inputs, 8, rounded)
    for row in range(4):
        for start in (0, 8):
            part, x = weight[row : row + 1, start : start + 8], inputs[:, start : start + 8].double()
            tried = []
            for ratio in RATIOS:
                limit = float(part.abs().max()) * ratio
                error = (rounded(part.clamp(-limit, limit)) - part).double()
                tried.append((float((x @ error.T).square().sum()), -ratio))
            limit = float(part.abs().max()) * -min(tried)[1]
            expected = part.clamp(-limit, limit)
            torch.testing.assert_close(found[row : row + 1, start : start + 8], expected)
    assert not torch.equal(found, weight)


def test_columns_that_groups_do_not_divide_stay() -> None:
    weight = torch.ones(2, 12)
    assert clip(weight, torch.ones(3, 12), 8, rounded) is weight
