"""Which rows a step sees: permutations of the data from the seed, the same rows for any number of processes."""

from __future__ import annotations

import torch

from runner.training.sampler import evaluation_batches, micro_batches, order


def test_every_pass_is_a_permutation_and_every_seed_another() -> None:
    rows = order(7, 20, seed=3)
    assert rows.shape == (20,)
    assert sorted(rows[:7].tolist()) == sorted(rows[7:14].tolist()) == list(range(7))
    assert rows[:7].tolist() != rows[7:14].tolist()
    assert torch.equal(rows, order(7, 20, seed=3))
    assert not torch.equal(rows, order(7, 20, seed=4))


def test_a_longer_training_begins_like_a_shorter_one() -> None:
    assert torch.equal(order(7, 50, seed=3)[:20], order(7, 20, seed=3))


def test_processes_and_accumulation_share_the_rows_of_each_step() -> None:
    rows = torch.arange(24)
    whole = micro_batches(rows, batch=12, accumulation=1, processes=1, rank=0)
    assert whole == [list(range(12)), list(range(12, 24))]
    parts = [micro_batches(rows, batch=12, accumulation=3, processes=2, rank=rank) for rank in (0, 1)]
    assert parts[0] == [[0, 1], [4, 5], [8, 9], [12, 13], [16, 17], [20, 21]]
    assert parts[1] == [[2, 3], [6, 7], [10, 11], [14, 15], [18, 19], [22, 23]]


def test_every_process_evaluates_as_often_and_every_window_counts_once() -> None:
    parts = [evaluation_batches(windows=7, micro=3, processes=2, rank=rank) for rank in (0, 1)]
    assert parts == [[(0, 3, True), (6, 7, True)], [(3, 6, True), (6, 7, False)]]
    assert evaluation_batches(windows=2, micro=4, processes=1, rank=0) == [(0, 2, True)]
