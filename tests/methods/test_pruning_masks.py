"""Masks: exact counts, ties, patterns, and the scores of the papers, against naive versions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import StepFailed
from runner.methods import pruning_masks


def naive(scores: list[float], pruned: int) -> list[bool]:
    """Prune the lowest, the first of equals first."""
    ranked = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    gone = set(ranked[:pruned])
    return [i not in gone for i in range(len(scores))]


def few_values(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Scores full of ties."""
    return torch.randint(0, 5, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 20), seed=st.integers(0, 99),
    sparsity=st.floats(0, 0.99), chunk=st.integers(1, 40),
)  # fmt: skip
def test_rows_and_whole_matrices_prune_exactly_the_lowest(
    rows: int, columns: int, seed: int, sparsity: float, chunk: int
) -> None:
    scores = few_values(rows, columns, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning_masks, "CHUNK", chunk)
        by_row = pruning_masks.mask_rows(scores, sparsity)
    count = pruning_masks.pruned_count(columns, sparsity)
    assert by_row.tolist() == [naive(row, count) for row in scores.tolist()]
    whole = pruning_masks.mask_matrix(scores, sparsity)
    assert whole.flatten().tolist() == naive(
        scores.flatten().tolist(), pruning_masks.pruned_count(rows * columns, sparsity)
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5), groups=st.integers(1, 5), seed=st.integers(0, 99),
    pattern=st.sampled_from([(2, 4), (4, 8), (1, 4), (3, 4)]), chunk=st.integers(1, 40),
)  # fmt: skip
def test_patterns_keep_n_of_every_m(rows: int, groups: int, seed: int, pattern: tuple[int, int], chunk: int) -> None:
    keep, of = pattern
    scores = few_values(rows, groups * of, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning_masks, "CHUNK", chunk)
        mask = pruning_masks.mask_pattern(scores, keep, of)
    for row, kept in zip(scores.view(-1, of).tolist(), mask.view(-1, of).tolist(), strict=True):
        assert sum(kept) == keep
        ranked = sorted(range(of), key=lambda i: (-row[i], -i))
        assert kept == [i in ranked[:keep] for i in range(of)]


def test_counts_are_what_was_asked_for_despite_binary_fractions() -> None:
    assert [pruning_masks.pruned_count(100, s) for s in (0.0, 0.29, 0.57, 0.5, 0.999)] == [0, 29, 57, 50, 99]
    assert pruning_masks.pruned_count(3, 0.5) == 1
    for sparsity in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"^sparsity must be at least 0 and below 1; got {sparsity}$"):
            pruning_masks.pruned_count(10, sparsity)


def test_wanda_compares_weights_times_input_norms_within_a_row() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5], [10.0, 0.1, -0.2, 30.0]])
    norms = torch.tensor([4.0, 1.0, 0.5, 1.0])
    assert pruning_masks.wanda_mask(weight, norms, 0.5, "unstructured").tolist() == [
        [True, True, False, False],
        [True, False, False, True],
    ]
    assert (
        pruning_masks.wanda_mask(weight, norms, 0.5, "2:4").tolist()
        == pruning_masks.wanda_mask(weight, norms, 0.5, "unstructured").tolist()
    )


def test_magnitude_compares_the_whole_matrix() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5], [10.0, 0.1, -20.0, 30.0]]).bfloat16()
    assert pruning_masks.magnitude_mask(weight, 0.5, "unstructured").tolist() == [
        [False, False, True, False],
        [True, False, True, True],
    ]
    assert pruning_masks.magnitude_mask(weight, 0.5, "2:4").tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_what_is_pruned_stays_pruned_when_pruned_further() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    first = pruning_masks.apply_mask(weight, pruning_masks.magnitude_mask(weight, 0.3, "unstructured"))
    assert first.weight is not None
    assert first.metrics == {"sparsity": 307 / 1024}
    second = pruning_masks.apply_mask(first.weight, pruning_masks.magnitude_mask(first.weight, 0.6, "unstructured"))
    assert second.weight is not None
    assert bool((second.weight[first.weight == 0] == 0).all())
    assert second.metrics == {"sparsity": 614 / 1024}


def test_a_matrix_of_zeros_loses_its_first_weights() -> None:
    assert pruning_masks.mask_rows(torch.zeros(1, 4), 0.5).tolist() == [[False, False, True, True]]
    assert pruning_masks.mask_matrix(torch.zeros(2, 2), 0.5).tolist() == [[False, False], [True, True]]


def test_what_cannot_be_ranked_is_refused() -> None:
    scores = torch.tensor([[1.0, float("nan"), 2.0, 3.0]])
    with pytest.raises(StepFailed, match=r"^1 of 4 scores are not finite$"):
        pruning_masks.mask_rows(scores, 0.5)
    with pytest.raises(StepFailed, match=r"^1 of 4 scores are not finite$"):
        pruning_masks.mask_matrix(scores, 0.5)
    with pytest.raises(StepFailed, match=r"^1 of 4 scores are not finite$"):
        pruning_masks.mask_pattern(scores, 2, 4)
    with pytest.raises(ValueError, match=r"^6 columns are not a multiple of 4$"):
        pruning_masks.mask_pattern(torch.zeros(1, 6), 2, 4)
    with pytest.raises(ValueError, match=r"^an n:m pattern keeps at least 1 and fewer than m weights; got 4:4$"):
        pruning_masks.mask_pattern(torch.zeros(1, 8), 4, 4)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_kept_weights_are_untouched(pattern: str) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    norms = torch.rand(16, generator=torch.Generator().manual_seed(1)) + 1
    for keep in (
        pruning_masks.wanda_mask(weight, norms, 0.5, pattern),
        pruning_masks.magnitude_mask(weight, 0.5, pattern),
    ):
        assert torch.equal(weight, before), "ranking must not write into the weight"
        pruned = pruning_masks.apply_mask(weight, keep).weight
        assert pruned is not None
        assert torch.equal(pruned[keep], before[keep])
        assert not pruned[~keep].any()
