"""Scales of channels that move difficulty from a linear's inputs into its weights, or the other way.

SmoothQuant (Xiao et al. 2023, eq. 4) and AWQ (Lin et al. 2024, eq. 4 and 5). A scale s divides what the channel holds
and multiplies the column of the weight that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

LEAST = 1e-5  # of a scale
AWQ_LEAST = 1e-4
STEPS = 20  # exponents that AWQ tries


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


def awq_candidates(inputs: torch.Tensor, weights: torch.Tensor, steps: int = STEPS) -> Iterator[torch.Tensor]:
    """Yield the scales that AWQ tries: s(r) = x̄^r ∕ (w̄^(1−r) + 10⁻⁴) for r = 0 … 1, over √(max s · min s).

    inputs   float32 [columns]: x̄, the mean of |x|
    weights  float32 [columns]: w̄ of `weight_sizes`
    """
    for step in range(steps + 1):
        ratio = step / steps
        scales = (inputs.pow(ratio) / (weights.pow(1 - ratio) + 1e-4)).clamp_min(AWQ_LEAST)
        scales = scales / (scales.max() * scales.min()).sqrt()
        yield torch.where(scales.isfinite(), scales, 1.0)


@dataclass(frozen=True)
class Chosen:
    """The best of the candidates, and what it costs beside doing nothing; `scales` is None for nothing."""

    scales: torch.Tensor | None
    cost: float
    before: float


def search(candidates: Iterator[torch.Tensor], cost: Callable[[torch.Tensor | None], float]) -> Chosen:
    """Return the candidate of the least cost; the first of equal ones, and None, no scaling, if none costs less."""
    before = cost(None)
    best, least = None, before
    for scales in candidates:
        found = cost(scales)
        if found < least:
            best, least = scales, found
    return Chosen(best, least, before)
