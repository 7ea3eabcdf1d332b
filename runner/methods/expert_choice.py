"""Choosing the experts of a mixture that stay, from what was measured of each. Plain numbers, no torch.

REAP (Lasby et al. 2025, arXiv:2510.13999, eq. 9) scores an expert j by the mean of g_j ‖f_j(x)‖ over the tokens that
are routed to it, with g_j its weight in the output and f_j(x) its own output.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

# What all experts give for the tokens by which they are compared holds at most this many values (256 MB).
_VALUES = 1 << 26
_TOKENS = 1024

REAP, ENERGY, FREQUENCY, NORM, RANDOM = CRITERIA = ("reap", "energy", "frequency", "norm", "random")


def scores(criterion: str, measured: Mapping[str, Sequence[float]], count: int, seed: str) -> list[float]:
    """Return the score of each of `count` experts; those with the least are dropped.

    `measured` has "tokens", "output", "energy" and "norm" as `runner.model.layerwise.expert_usage` gives them, or those
    of them that the criterion needs. An expert without tokens has the score 0 of REAP. `seed` decides random scores.
    """
    if criterion == RANDOM:
        drawn = random.Random(seed)
        return [drawn.random() for _ in range(count)]
    if criterion == NORM:
        return list(measured["norm"])
    if criterion == ENERGY:
        return list(measured["energy"])
    if criterion == FREQUENCY:
        return list(measured["tokens"])
    return [total / tokens if tokens else 0.0 for total, tokens in zip(measured["output"], measured["tokens"],
                                                                      strict=True)]  # fmt: skip


def choose(scores: Sequence[float], keep: int, groups: int = 1) -> list[int]:
    """Return the numbers of the `keep` experts with the largest scores, in rising order; of equals the first.

    Of `groups` equal groups of neighbours each keeps equally many. `groups` divides `keep` and the number of scores.
    """
    size, kept = len(scores) // groups, keep // groups
    found: list[int] = []
    for start in range(0, len(scores), size):
        ranked = sorted(range(start, start + size), key=lambda expert: (-scores[expert], expert))
        found += sorted(ranked[:kept])
    return found


def lost(values: Sequence[float], kept: Sequence[int]) -> float:
    """Return the part of the sum of `values` that belongs to the experts that do not stay; 0 where the sum is 0."""
    total = sum(values)
    return 1 - sum(values[expert] for expert in kept) / total if total else 0.0


def compared(experts: int, width: int, tokens: int) -> int:
    """Return by how many of `tokens` tokens to compare that many experts whose outputs have `width` columns."""
    return max(1, min(tokens, _TOKENS, _VALUES // (experts * width)))


def weights(measured: Mapping[str, Sequence[float]]) -> list[float]:
    """Return what each expert weighs in the one that it becomes part of: its outputs, times cos² of how alike they are.

    REAM weighs by the score alone. Where experts have little in common, as in a mixture that was trained to use all of
    them, that spoils the kept one; with the square what does not resemble it is dropped as without merging.
    """
    return [total * max(alike, 0.0) ** 2 for total, alike in zip(measured["output"], measured["alike"], strict=True)]


def added(measured: Mapping[str, Sequence[float]]) -> dict[int, int]:
    """Return for each expert that is added to a kept one which that is, by "joins" of `measured`.

    Of those that weigh nothing none is, and none to a kept one that weighs nothing.
    """
    own, joins = weights(measured), [int(kept) for kept in measured["joins"]]
    return {each: kept for each, kept in enumerate(joins) if each != kept and own[each] and own[kept]}


def shares(weights: Sequence[float], members: Sequence[int]) -> list[float]:
    """Return the part of each of `members`, all of which weigh something, in what they become."""
    total = sum(weights[member] for member in members)
    return [weights[member] / total for member in members]
