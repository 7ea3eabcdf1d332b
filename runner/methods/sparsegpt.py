"""SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774): weights pruned a column at a time, the others compensating.

In the form of runner/methods/gptq.py, whose factorization H = L D Lᵀ it takes: columns come from the last to the first
of their order, and with E = W − Q for the errors of those done

    v_k = w_k + Σ_{j > k} E_j L_jk,    q_k = v_k or 0,    at a cost of D_k (v_k − q_k)²              (1)

so pruning w_k costs D_k v_k², which is the paper's w² / [H⁻¹]_kk after the columns before it were removed. Masks are
chosen for BLOCK columns at once by those costs (the paper's B_s = 128), in each row by itself; for a pattern n:m, for m
neighbours as they are reached. The v of such columns are those that they have if none of them is pruned: with F the
strictly upper triangle of L_jk in row k, b what (1) adds up over columns done before, and d = v − w

    (I + F) d = b − w                                                                               (2)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runner.methods import pruning_masks
from runner.methods.gptq import ROWS, Factor

BLOCK = 128  # columns whose mask is chosen at once
INNER = 16  # columns that see one another's errors as vectors, of an unstructured mask


@dataclass(frozen=True)
class Pruned:
    """A pruned weight float32 [out, in], and the diagonal of E H Eᵀ [out], the error of each row's output."""

    weight: torch.Tensor
    error: torch.Tensor


def prune(weight: torch.Tensor, factor: Factor, sparsity: float, pattern: str) -> Pruned:
    """Prune `weight` [out, in] to `sparsity`, or to a pattern "n:m", each row independently of the others.

    `factor` has the columns in their natural order (without `act_order`): a pattern is one of neighbours. Of every
    BLOCK columns ⌊sparsity · BLOCK⌋ are pruned, up to what rounding leaves to the next ones.
    """
    count = ROWS if weight.device.type == "cpu" else weight.shape[0]
    parts = [_solve(part.float(), factor, sparsity, pattern) for part in weight.split(count)]
    weights, errors = zip(*parts, strict=True)
    return Pruned(torch.cat(weights), torch.cat(errors))


def _solve(weight: torch.Tensor, factor: Factor, sparsity: float, pattern: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pruned weight [rows, K] and the error of each row; works on transposed matrices, as `gptq` does."""
    rows, columns = weight.shape
    kept = of = 0
    if pattern != pruning_masks.UNSTRUCTURED:
        kept, of = pruning_masks.parsed(pattern)
    target = weight.masked_fill(factor.dead, 0.0).T.index_select(0, factor.order)
    errors = torch.empty_like(target)
    lost = torch.zeros(rows, device=weight.device)
    pruned = 0
    for end in range(columns, 0, -BLOCK):
        block = slice(max(0, end - BLOCK), end)
        values = torch.addmm(target[block], factor.feedback[block, end:], errors[end:])
        keep = None
        if not of:
            due = pruning_masks.pruned_count(columns - block.start, sparsity) - pruned
            pruned += due
            scores = _scores(values, target[block], factor.feedback[block, block], factor.costs[block])
            keep = pruning_masks.mask_count(scores, due).T
        own = values, target[block], errors[block], factor.feedback[block, block], factor.costs[block]
        lost.addmv_(_prune_block(*own, keep, (kept, of)).square_().T, factor.costs[block])
    lost.sub_(errors.square().sum(0), alpha=factor.ridge).clamp_(min=0)
    pruned_weight = target.sub_(errors).index_select(0, factor.order.argsort()).T.contiguous()
    return pruned_weight, lost


def _scores(sums: torch.Tensor, target: torch.Tensor, feedback: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """Return what pruning each of some columns costs [rows, columns], by (2); `sums` and `target` are transposed."""
    moved: torch.Tensor = torch.linalg.solve_triangular(feedback, sums - target, upper=True, unitriangular=True)
    return moved.add_(target).square_().mul_(costs[:, None]).T.contiguous()


def _prune_block(
    values: torch.Tensor,
    target: torch.Tensor,
    errors: torch.Tensor,
    feedback: torch.Tensor,
    costs: torch.Tensor,
    keep: torch.Tensor | None,
    pattern: tuple[int, int],
) -> torch.Tensor:
    """Prune the columns of one block from the last to the first; return v − q [columns, rows], made in `values`.

    values    [columns, rows]: (1) over all later blocks; completed in place
    target    [columns, rows]: w;  errors [columns, rows]: filled with w − q
    feedback  [columns, columns]: the diagonal block of the factor's;  costs [columns]: D
    keep      [columns, rows]: the mask; None where it is chosen by `pattern`, (n, m)
    """
    columns = values.shape[0]
    inner = pattern[1] or INNER
    for end in range(columns, 0, -inner):
        begin = max(0, end - inner)
        own = values[begin:end].addmm_(feedback[begin:end, end:], errors[end:])
        if keep is None:
            scores = _scores(own, target[begin:end], feedback[begin:end, begin:end], costs[begin:end])
            mask = pruning_masks.mask_pattern(scores, *pattern).T
        else:
            mask = keep[begin:end]
        kept = mask.to(own.dtype)
        for i in range(end - begin - 1, -1, -1):
            value = own[i]
            if i < end - begin - 1:
                value.addmv_(errors[begin + i + 1 : end].T, feedback[begin + i, begin + i + 1 : end])
            torch.addcmul(target[begin + i], kept[i], value, value=-1, out=errors[begin + i])
    return values.sub_(target).add_(errors)
