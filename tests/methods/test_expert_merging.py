"""Which experts join which, and in what order of their neurons."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from runner.methods import expert_choice
from runner.methods.expert_merging import nearest, order


def test_an_expert_joins_the_kept_one_with_the_largest_cosine() -> None:
    outputs = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[5.0, 4.0]], [[-1.0, 9.0]], [[0.0, 0.0]]])
    joins, alike = nearest(outputs, [0, 1])
    assert joins == [0, 1, 0, 1, 0]
    assert alike == pytest.approx([1, 1, 5 / 41**0.5, 9 / 82**0.5, 0])
    assert nearest(outputs, [1, 2])[0] == [2, 1, 2, 1, 1]


def test_the_order_is_the_best_of_all() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        one, two = ([torch.randn(5, width, generator=draw) for width in (3, 7)] for _ in range(2))

        def gain(rows: list[int], one: list[torch.Tensor] = one, two: list[torch.Tensor] = two) -> float:
            return sum(float((a * b[rows]).sum()) for a, b in zip(one, two, strict=True))

        best = max(permutations(range(5)), key=lambda rows: gain(list(rows)))
        assert order(one, two).tolist() == list(best)


def test_neurons_are_found_again_in_another_order() -> None:
    draw = torch.Generator().manual_seed(0)
    own = [torch.randn(64, 16, generator=draw).bfloat16() for _ in range(3)]
    moved = torch.randperm(64, generator=draw)
    found = order(own, [each[moved] for each in own])
    assert torch.equal(moved[found], torch.arange(64))


def test_shares() -> None:
    assert expert_choice.shares([1.0, 3.0, 6.0], [1, 2]) == [3 / 9, 6 / 9]
    measured = {"output": [1.0, 2.0, 0.0, 3.0, 1.0, 1.0], "alike": [1.0, 0.5, 1.0, 0.5, 0.5, -0.5]}
    assert expert_choice.added({**measured, "joins": [0, 0, 2, 2, 0, 0]}) == {1: 0, 4: 0}
    assert expert_choice.weights({"output": [2.0, 3.0, 4.0], "alike": [1.0, 0.5, -0.1]}) == [2.0, 0.75, 0.0]
    assert expert_choice.compared(128, 2048, 65536) == 256
    assert expert_choice.compared(8, 32, 300) == 300
    assert expert_choice.compared(8, 32, 30000) == 1024
