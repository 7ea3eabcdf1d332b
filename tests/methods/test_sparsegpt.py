"""SparseGPT against the paper's algorithm 1, in float64 with an inverse of H and one column after another."""

from __future__ import annotations

import pytest
import torch

from runner.methods import pruning_masks, sparsegpt
from runner.methods.gptq import factorize
from tests.methods.naive import dampened

DAMPENING = 0.01


def naive(weight: torch.Tensor, hessian: torch.Tensor, sparsity: float, pattern: str) -> torch.Tensor:
    """Frantar & Alistarh 2023, algorithm 1, with the thresholds of each row."""
    h = dampened(hessian, DAMPENING)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w = weight.double().clone()
    w[:, hessian.diagonal() == 0] = 0.0
    columns = w.shape[1]
    pruned = torch.zeros_like(w, dtype=torch.bool)
    done = 0
    for column in range(columns):
        if pattern == "unstructured" and column % 128 == 0:
            part = slice(column, min(column + 128, columns))
            count = int(sparsity * part.stop + 1e-9) - done
            done += count
        elif pattern != "unstructured" and column % int(pattern[2]) == 0:
            part = slice(column, column + int(pattern[2]))
            count = int(pattern[2]) - int(pattern[0])
        else:
            count = -1
        if count >= 0:
            scores = (w[:, part] / upper.diagonal()[part]) ** 2
            pruned[:, part] = False
            pruned[:, part].scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], True)
        kept = torch.where(pruned[:, column], 0.0, w[:, column])
        error = (w[:, column] - kept) / upper[column, column]
        w[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
        w[:, column] = kept
    return w


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a second moment of correlated inputs, of which one is always zero."""
    torch.manual_seed(seed)
    x = torch.randn(500, columns) @ (torch.eye(columns) + 0.3 * torch.randn(columns, columns) / columns**0.5)
    x[:, 5] = 0
    return torch.randn(rows, columns), 2 / 500 * x.T @ x


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize(("columns", "sparsity"), [(96, 0.5), (256, 0.5), (304, 0.3)])
def test_it_prunes_and_compensates_as_the_paper_does(columns: int, sparsity: float, pattern: str) -> None:
    weight, hessian = problem(24, columns)
    factor = factorize(hessian, dampening_fraction=DAMPENING, act_order=False)
    found = sparsegpt.prune(weight, factor, sparsity, pattern)
    expected = naive(weight, hessian, sparsity, pattern)
    assert torch.equal(found.weight == 0, expected == 0)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_error_is_that_of_the_output(pattern: str) -> None:
    weight, hessian = problem(16, 160)
    factor = factorize(hessian, dampening_fraction=DAMPENING, act_order=False)
    found = sparsegpt.prune(weight, factor, 0.5, pattern)
    error = (weight - found.weight).double()
    torch.testing.assert_close(found.error.double(), ((error @ hessian.double()) * error).sum(1), rtol=1e-3, atol=1e-6)


def test_it_loses_less_than_a_mask_alone() -> None:
    weight, hessian = problem(16, 128)
    factor = factorize(hessian, dampening_fraction=DAMPENING, act_order=False)
    keep = pruning_masks.wanda_mask(weight, hessian.diagonal().sqrt(), 0.5, "unstructured")
    alone = weight.masked_fill(keep, 0.0)
    assert sparsegpt.prune(weight, factor, 0.5, "unstructured").error.sum() < 0.9 * ((alone @ hessian) * alone).sum()


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
def test_every_row_has_the_sparsity_asked_for(sparsity: float) -> None:
    weight, hessian = problem(8, 300)
    hessian[5, 5] = 1.0  # else its column is zero in any case
    factor = factorize(hessian, dampening_fraction=DAMPENING, act_order=False)
    found = sparsegpt.prune(weight, factor, sparsity, "unstructured").weight
    assert (found == 0).sum(1).tolist() == [pruning_masks.pruned_count(300, sparsity)] * 8
    if sparsity == 0:
        torch.testing.assert_close(found, weight)


def test_rows_are_independent_of_how_many_are_solved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(10, 128)
    factor = factorize(hessian, dampening_fraction=DAMPENING, act_order=False)
    whole = sparsegpt.prune(weight, factor, 0.5, "2:4").weight
    monkeypatch.setattr(sparsegpt, "ROWS", 4)
    torch.testing.assert_close(sparsegpt.prune(weight, factor, 0.5, "2:4").weight, whole, rtol=1e-5, atol=1e-6)
