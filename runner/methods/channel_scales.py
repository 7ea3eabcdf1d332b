"""Scales of channels that move difficulty from a linear's inputs into its weights, or the other way.

SmoothQuant (Xiao et al. 2023, eq. 4) and AWQ (Lin et al. 2024, eq. 4 and 5). A scale s divides what the channel holds
and multiplies the column of the weight that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

LEAST = 1e-5  # of a scale
AWQ_LEAST = 1e-4
COARSE, FINE = 10, 0.05  # how AWQ's exponents are tried: ten steps, then half a step around the best


def smooth_scales(inputs: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return SmoothQuant's s = max|x|^α ∕ max|w|^(1−α), [columns]; 1 where a column has no inputs or no weights.

    inputs, weights   float32 [columns]: the largest absolute values of each
    """
    scales = (inputs.pow(alpha) / weights.pow(1 - alpha)).clamp_min(LEAST)
    return torch.where((inputs > 0) & (weights > 0) & scales.isfinite(), scales, 1.0)


def weight_sizes(weights: Sequence[torch.Tensor], group_size: int) -> torch.Tensor:
    """Return AWQ's w̄ [columns]: over the rows of all weights [out, columns], the mean of |w| ∕ max|w| of its group.

    A row ends with a shorter group where `group_size` does not divide its columns.
    """
    total = torch.zeros(weights[0].shape[1], device=weights[0].device)
    for weight in weights:
        rows, columns = weight.shape
        sizes = torch.nn.functional.pad(weight.abs(), (0, -columns % group_size)).view(rows, -1, group_size)
        largest = sizes.amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        total += (sizes / largest).view(rows, -1)[:, :columns].sum(0)
    return total / sum(len(weight) for weight in weights)


def awq_scales(inputs: torch.Tensor, weights: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return AWQ's s(r) = x̄^r ∕ (w̄^(1−r) + 10⁻⁴), over √(max s · min s).

    inputs   float32 [columns]: x̄, the mean of |x|
    weights  float32 [columns]: w̄ of `weight_sizes`
    """
    scales = (inputs.pow(ratio) / (weights.pow(1 - ratio) + 1e-4)).clamp_min(AWQ_LEAST)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return torch.where(scales.isfinite(), scales, 1.0)


@dataclass(frozen=True)
class Chosen:
    """The best scales, and what they cost; `scales` is None where none are better. `before` is what that costs."""

    scales: torch.Tensor | None
    cost: float
    before: float


def search(scales: Callable[[float], torch.Tensor], cost: Callable[[torch.Tensor | None], float]) -> Chosen:
    """Return the scales of the least cost among those of the ratios 0, 0.1 … 1 and, around the best, 0.05 to each side.

    The first of equal ones; None, no scales, if none cost less.
    """
    before = cost(None)
    best, least, at = None, before, 0.0
    for step in range(COARSE + 1):
        tried = scales(step / COARSE)
        found = cost(tried)
        if found < least:
            best, least, at = tried, found, step / COARSE
    for ratio in (at - FINE, at + FINE) if best is not None else ():
        if 0 <= ratio <= 1:
            tried = scales(ratio)
            found = cost(tried)
            if found < least:
                best, least = tried, found
    return Chosen(best, least, before)
