"""Clipping weights before they are rounded to a grid that reaches from their smallest to their largest (AWQ)."""

from __future__ import annotations

from collections.abc import Callable

import torch

RATIOS = tuple(1 - step / 20 for step in range(11))  # of the largest weight of a group: 1, 0.95, … 0.5


def clip(
    weight: torch.Tensor, inputs: torch.Tensor, group_size: int, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return `weight` [out, in] with each group of each row clipped where rounding then errs least on `inputs`.

    The error of a group is ‖(Q − W) X‖² of its columns alone, as AWQ counts it.

    inputs    [tokens, in]
    rounded   what rounding makes of a weight [out, in]
    """
    rows, columns = weight.shape
    if columns % group_size:
        return weight
    blocks = inputs.view(len(inputs), -1, group_size).permute(1, 0, 2)
    moments = torch.bmm(blocks.transpose(1, 2), blocks)  # [groups, size, size]
    largest = weight.view(rows, -1, group_size).abs().amax(2)
    best = torch.ones_like(largest)
    least = torch.full_like(largest, torch.inf)
    for ratio in RATIOS:
        clipped = _clipped(weight, largest * ratio, group_size)
        error = (rounded(clipped) - weight).view(rows, -1, group_size).transpose(0, 1)  # [groups, rows, size]
        cost = (torch.bmm(error, moments) * error).sum(2).T
        better = cost < least
        least, best = torch.where(better, cost, least), torch.where(better, ratio, best)
    return _clipped(weight, largest * best, group_size)


def _clipped(weight: torch.Tensor, limits: torch.Tensor, group_size: int) -> torch.Tensor:
    by_column = limits.repeat_interleave(group_size, 1)
    return torch.minimum(torch.maximum(weight, -by_column), by_column)
