"""Pruning scores and masks, as pure functions on tensors. A mask is bool [out, in], True for weights that stay.

Counts are exact: of n weights compared with one another, ⌊sparsity · n⌋ are pruned, those with the lowest scores. Among
equal scores (bf16 has few distinct magnitudes) the first by column, and by row where rows are compared, are pruned.
"""

from __future__ import annotations

import math

import torch

from runner.errors import StepFailed
from runner.model.layerwise.method import Transformed

UNSTRUCTURED = "unstructured"
CHUNK = 1 << 22  # elements ranked at once


def magnitude_mask(weight: torch.Tensor, sparsity: float, pattern: str) -> torch.Tensor:
    """Return the mask of the largest |W|: of the full matrix, or of every m inputs for a pattern "n:m"."""
    scores = magnitude_scores(weight)
    return mask_matrix(scores, sparsity) if pattern == UNSTRUCTURED else mask_pattern(scores, *parsed(pattern))


def wanda_mask(weight: torch.Tensor, input_norms: torch.Tensor, sparsity: float, pattern: str) -> torch.Tensor:
    """Return the mask of the largest |W_ij| · ‖X_j‖₂: of each row, or of every m inputs for a pattern "n:m"."""
    scores = wanda_scores(weight, input_norms)
    return mask_rows(scores, sparsity) if pattern == UNSTRUCTURED else mask_pattern(scores, *parsed(pattern))


def apply_mask(weight: torch.Tensor, keep: torch.Tensor) -> Transformed:
    """Set the weights outside the mask to zero; return the weight and the share of its values that is zero now."""
    pruned = weight.masked_fill(~keep, 0.0)
    return Transformed(weight=pruned, metrics={"sparsity": zero_share(pruned)})


def zero_share(weight: torch.Tensor) -> float:
    """Return the share of the values that are zero."""
    return (weight.numel() - int(weight.count_nonzero())) / weight.numel()


def magnitude_scores(weight: torch.Tensor) -> torch.Tensor:
    """Return |W| as float32."""
    return weight.float().abs()


def wanda_scores(weight: torch.Tensor, input_norms: torch.Tensor) -> torch.Tensor:
    """Return |W_ij| · ‖X_j‖₂ (Sun et al. 2023) as float32; `input_norms` [in]."""
    return magnitude_scores(weight).mul_(input_norms.float())


def pruned_count(size: int, sparsity: float) -> int:
    """Return ⌊sparsity · size⌋, corrected for the rounding of the product: 0.29 of 100 is 29."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be at least 0 and below 1; got {sparsity}")
    return math.floor(sparsity * size + 1e-6)


def mask_matrix(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return the mask from comparing all scores of the matrix with one another, as magnitude pruning does."""
    flat = _finite(scores).reshape(-1)
    count = pruned_count(flat.numel(), sparsity)
    if not count:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = flat.kthvalue(count).values
    keep = flat > limit
    ties = (flat == limit).nonzero().view(-1)
    kept_ties = keep.numel() - count - int(keep.sum())
    if kept_ties:
        keep[ties[-kept_ties:]] = True
    return keep.view(scores.shape)


def mask_rows(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return the mask from comparing scores within each row, as Wanda does."""
    return mask_count(scores, pruned_count(scores.shape[1], sparsity))


def mask_count(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mask without the `count` lowest scores of each row."""
    columns = _finite(scores).shape[1]
    keep = torch.ones_like(scores, dtype=torch.bool)
    if not count:
        return keep
    for part, out in zip(scores.split(_rows(columns)), keep.split(_rows(columns)), strict=True):
        limit = part.kthvalue(count, dim=1, keepdim=True).values
        torch.gt(part, limit, out=out)
        ties = part == limit
        kept_ties = columns - count - out.sum(1, keepdim=True)
        first_kept = ties.sum(1, keepdim=True) - kept_ties
        out |= ties & (ties.cumsum(1, dtype=torch.int32) > first_kept)
    return keep


def mask_pattern(scores: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    """Return the mask of the `keep` best of every `of` consecutive inputs (2:4 keeps 2 of 4).

    `of` must divide the columns.
    """
    columns = _finite(scores).shape[1]
    if not 0 < keep < of:
        raise ValueError(f"an n:m pattern keeps at least 1 and fewer than m weights; got {keep}:{of}")
    if columns % of:
        raise ValueError(f"{columns} columns are not a multiple of {of}")
    mask = torch.empty_like(scores, dtype=torch.bool)
    for part, out in zip(scores.split(_rows(columns)), mask.split(_rows(columns)), strict=True):
        groups = part.reshape(-1, of)
        rank = torch.zeros_like(groups, dtype=torch.uint8)  # how many weights of its group go before it
        for rival in range(of):
            other = groups[:, rival : rival + 1]
            rank[:, :rival] += other >= groups[:, :rival]
            rank[:, rival:] += other > groups[:, rival:]
        out.copy_((rank < keep).view(out.shape))
    return mask


def parsed(pattern: str) -> tuple[int, int]:
    """Return n and m of a pattern "n:m"."""
    keep, of = pattern.split(":")
    return int(keep), int(of)


def _finite(scores: torch.Tensor) -> torch.Tensor:
    """Return the scores; StepFailed where one is NaN or infinite: a NaN has no rank."""
    if not bool(torch.isfinite(scores.sum())) and not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).sum())
        raise StepFailed(
            f"{bad} of {scores.numel()} scores are not finite",
            "weights or statistics hold NaN or infinity: check the checkpoint, or store it in another dtype",
        )
    return scores


def _rows(columns: int) -> int:
    return max(1, CHUNK // columns)
