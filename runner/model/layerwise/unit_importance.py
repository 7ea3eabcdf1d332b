"""How much the units of a layer matter, from what they compute on calibration data, and which of them stay.

Minitron (Muralidharan 2024, arXiv:2407.14679, section 2.2): the activations of a unit are aggregated over the tokens of
a window, then over windows by the L2 norm. Pure functions on tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def window_scores(activations: torch.Tensor, aggregation: str, channels: int = 1) -> torch.Tensor:
    """Return the score of every unit in every window, float64 [windows, units].

    `activations` is [windows, tokens, units · channels]; a unit of several channels (a head) counts by their L2 norm.
    `aggregation` over tokens is "mean" of absolute values, or "l2": the root of the mean square.
    """
    values = activations.float()
    if channels > 1:
        values = torch.linalg.vector_norm(values.unflatten(-1, (-1, channels)), dim=-1)
    wide = torch.float64 if values.device.type != "mps" else torch.float32
    if aggregation == "l2":
        return values.square().mean(1, dtype=wide).sqrt()
    return values.abs().mean(1, dtype=wide)


def top(scores: torch.Tensor, count: int) -> list[int]:
    """Return the `count` units [units] of the highest scores, in their order; of equals the earlier ones."""
    ranked = sorted(range(len(scores)), key=lambda unit: (-float(scores[unit]), unit))
    return sorted(ranked[:count])


def top_heads(heads: torch.Tensor, groups: torch.Tensor, keep: int, per_group: int) -> tuple[list[int], list[int]]:
    """Return the heads and the groups of heads that stay: `keep` groups, and of each its `per_group` best heads.

    `heads` [heads] are the scores of heads, those of a group one after another; `groups` [groups] those of what a group
    has for itself, its keys and values. A group counts by the L2 norm of all of these.
    """
    own = heads.view(len(groups), -1)
    stay = top(own.square().sum(1) + groups.square(), keep)
    size = own.shape[1]
    chosen = [group * size + head for group in stay for head in top(own[group], per_group)]
    return chosen, stay


def lost(scores: torch.Tensor, stay: Sequence[int]) -> float:
    """Return the share of Σ score² that the units [units] which do not stay had."""
    squares = scores.double().square()
    total = float(squares.sum())
    return 1 - float(squares[list(stay)].sum()) / total if total else 0.0
