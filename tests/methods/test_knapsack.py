"""The exact assignment against brute force over all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from runner.methods.knapsack import choose, within


def brute_force(losses: np.ndarray, costs: np.ndarray, budget: float) -> float | None:
    """Return the least loss within the budget among all assignments; None where there is none."""
    groups, options = losses.shape
    every = np.array(list(itertools.product(range(options), repeat=groups)))
    spent = costs[np.arange(groups), every].sum(1)
    lost = losses[np.arange(groups), every].sum(1)
    return float(lost[spent <= budget].min()) if (spent <= budget).any() else None


def compare(instances: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    undecided = 0
    for _ in range(instances):
        shape = (int(draw.integers(1, 6)), int(draw.integers(2, 5)))
        sizes = draw.integers(1, 2000, (shape[0], 1)) * 32
        costs = sizes * np.sort(draw.choice([2, 3, 4, 5, 6, 8, 16], shape[1], replace=False))
        losses = draw.lognormal(-4, 3, shape)  # over many orders of magnitude, and not always falling with the cost
        budget = int(draw.uniform(0.9 * costs.min(1).sum(), costs.max(1).sum()))
        found = choose(losses.tolist(), costs.tolist(), budget)
        expected = brute_force(losses, costs, budget)
        if expected is None:
            assert found is None
            undecided += 1
            continue
        assert found is not None
        assert costs[np.arange(shape[0]), list(found)].sum() <= budget
        assert losses[np.arange(shape[0]), list(found)].sum() == pytest.approx(expected, rel=1e-9)
    assert 0 < undecided < instances / 2


def test_it_equals_brute_force_on_random_instances() -> None:
    compare(400, seed=1)


@pytest.mark.nightly
def test_it_equals_brute_force_on_10000_random_instances() -> None:
    compare(10_000, seed=2)


def test_the_cheapest_assignment_within_a_loss() -> None:
    losses, costs = [[0.5, 0.1, 0.0], [0.3, 0.05, 0.01]], [[2, 3, 4], [2, 3, 4]]
    assert choose(costs, losses, 0.25) == (1, 1)
    assert choose(costs, losses, 0.149) in ((2, 1), (1, 2))
    assert choose(costs, losses, 0.005) is None


def test_a_budget_that_one_byte_decides_is_exact_at_the_size_of_large_models() -> None:
    costs = [[10**11 + i, 2 * 10**11 + 3 * i] for i in range(8)]
    losses = [[1.0 + i / 10, 0.0] for i in range(8)]
    for spared in (0, 1):
        budget = sum(row[0] for row in costs) + 3 * 10**11 + 2 * (5 + 6 + 7) - spared
        found = choose(losses, costs, budget)
        assert found is not None
        assert within(costs, found, budget)
        dear = [i for i, option in enumerate(found) if option == 1]
        assert dear == ([5, 6, 7] if not spared else [4, 6, 7])
