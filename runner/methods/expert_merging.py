"""Merging experts of a mixture: one that is dropped becomes part of the kept one that it resembles most.

REAM (Jha et al. 2026, arXiv:2604.04356) keeps the experts with the largest scores of REAP and adds the others to them,
each expert weighed by its score. Before they are added, the neurons of an expert, whose order means nothing, are put in
the order of those that they resemble (weight matching: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2). Experts
are compared by their outputs on the same tokens (HC-SMoE: Chen et al. 2025, arXiv:2410.08589), so that whichever tokens
happened to be routed to them decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def nearest(outputs: torch.Tensor, kept: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return for every expert the kept one that it joins, and how alike they are.

    `outputs` [experts, tokens, columns] are those of all experts for the same tokens, and alike is the cosine between
    them. A kept expert joins itself, another that with the largest cosine; of equals the first.
    """
    flat = outputs.reshape(len(outputs), -1).float()
    # An expert that gives nothing resembles none, which must not be decided by a division by zero.
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    alike = flat @ flat[list(kept)].T
    joins = [expert if expert in kept else kept[int(alike[expert].argmax())] for expert in range(len(outputs))]
    place = {expert: column for column, expert in enumerate(kept)}
    return joins, [1.0 if kept == own else float(alike[own, place[kept]]) for own, kept in enumerate(joins)]


def order(anchor: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return which neuron of `other` takes the place of each neuron of `anchor`, int64 [neurons].

    Both are what belongs to each neuron, a row for each: [neurons, columns], [neurons, columns], … The sum of the
    products of rows in the same place is the largest that any order gives.
    """
    from scipy.optimize import linear_sum_assignment

    products = sum(one.float() @ two.float().T for one, two in zip(anchor, other, strict=True))
    assert isinstance(products, torch.Tensor)
    return torch.from_numpy(linear_sum_assignment(products.numpy(), maximize=True)[1])
