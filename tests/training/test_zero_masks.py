"""A pruned checkpoint's zeros outlive training; what was never pruned moves freely."""

from __future__ import annotations

import torch
from torch import nn

from runner.training.zero_masks import Masks


def test_zeros_of_pruned_weights_are_held_and_others_are_not() -> None:
    torch.manual_seed(0)
    pruned, dense = nn.Linear(16, 8), nn.Linear(16, 8)
    table = nn.Embedding(10, 4, padding_idx=0)
    with torch.no_grad():
        pruned.weight[:, ::2] = 0
        dense.weight[0, 0] = 0
        table.weight[:5] = 0
    model = nn.ModuleList([pruned, dense, table])
    masks = Masks(model)
    assert len(masks) == 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    masks.apply()
    assert torch.equal(pruned.weight == 0, (torch.arange(16) % 2 == 0).expand(8, 16))
    assert not torch.signbit(pruned.weight[:, ::2]).any(), "zeros are +0, as pruning wrote them"
    assert dense.weight.count_nonzero() == 128
    assert table.weight.count_nonzero() == 40


def test_a_dense_model_has_nothing_to_hold() -> None:
    assert len(Masks(nn.Linear(4, 4))) == 0
