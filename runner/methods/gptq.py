"""GPTQ (Frantar et al. 2022) for weight matrices, as pure functions on tensors.

With H the second moment of the inputs and E = W − Q, the error of a linear's output is tr(E H Eᵀ). Order the columns
from the least to the most important one and factorize H = L D Lᵀ with L unit lower triangular. Then

    tr(E H Eᵀ) = Σ_rows Σ_k D_k (Σ_{j ≥ k} E_j L_jk)²                                                 (1)

so columns are rounded from the last to the first, each to the grid point that is nearest to

    v_k = w_k + Σ_{j > k} E_j L_jk                                                                    (2)

which costs D_k (v_k − q_k)². That is GPTQ's rule, w ← w − (w_k − q_k) / U_kk · U_k with UᵀU = H⁻¹, in the form of QuIP
(Chee et al. 2023, theorem 6): equal in exact arithmetic, but it takes one Cholesky factorization of H and no inverse,
and every column is read and written once, not once for every column before it.

GPTAQ (Li et al. 2025) allows for inputs X that differ from the full model's: after column i is rounded, it adds v_i P_i
to the columns still to come, P = α · tril(C M ᵀ, −1) M with M = (L √D)⁻¹ and C = (X_full − X)ᵀ X. In matrices, over the
columns of a row, v = t + (t − q)(L − I) with targets t = w + v P, hence

    v = w G⁻¹ + (w − q)(L − I) G⁻¹,   G = I − P L = I − α · tril(C Mᵀ, −1) D^(−1/2)                   (3)

which has the form of (2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from runner.errors import StepFailed
from runner.methods.quantization_grid import Grid
from runner.model.checkpoint.quantization.quantized import Quantized

BLOCK = 128  # columns whose sums over the errors of later blocks are one product
INNER = 16  # columns of a block that see one another's errors as vectors
ROWS = 4096  # rows solved at once on a CPU, so that a block of columns stays in the caches
MAX_DAMPENING = 10.0  # share of the mean diagonal beyond which dampening would drown out H


@dataclass(frozen=True)
class Factor:
    """A dampened second moment, factorized. Matrices and `costs` are in the order of `order`.

    order      int64 [K]: the columns from the least to the most important one; they are rounded from the last
    feedback   float32 [K, K]: row k holds, for j > k, what E_j adds to column k: L_jk, or (3)'s matrix
    costs      float32 [K]: D_k
    dead       bool [K], by original column: inputs that were always zero
    dampening  the share of the mean diagonal that was finally added to the diagonal
    ridge      the same as an absolute amount
    start      float32 [K, K]: G of (3); None without GPTAQ
    """

    order: torch.Tensor
    feedback: torch.Tensor
    costs: torch.Tensor
    dead: torch.Tensor
    dampening: float
    ridge: float
    start: torch.Tensor | None = None

    def importance(self) -> torch.Tensor:
        """Return what an error in each column costs [K] once the later columns have compensated for it.

        This is D by original column; the diagonal of H is the cost without that compensation.
        """
        return torch.empty_like(self.costs).index_copy_(0, self.order, self.costs).masked_fill_(self.dead, 0.0)


@dataclass(frozen=True)
class Solution:
    """A quantized weight and the error of each of its rows.

    `error` is float32 [out]: the diagonal of E H Eᵀ (with GPTAQ, of (v − q) D (v − q)ᵀ). `positions` float32
    [out, in], where asked for, are the values v of (2) that were rounded, in steps of their scale.
    """

    quantized: Quantized
    error: torch.Tensor
    positions: torch.Tensor | None = None


def factorize(
    hessian: torch.Tensor,
    *,
    dampening_fraction: float,
    act_order: bool,
    cross: torch.Tensor | None = None,
    alpha: float = 0.0,
) -> Factor:
    """Order the columns, dampen and factorize H [K, K] float32, which is not modified.

    Dampening starts at `dampening_fraction` of the mean diagonal and doubles until the factorization succeeds.
    `cross` [K, K] is C on the scale of H, for GPTAQ of strength `alpha`.
    Raises StepFailed when H holds NaN or infinity, or stays indefinite.
    """
    diagonal = hessian.diagonal()
    columns = hessian.shape[0]
    bad = int((~torch.isfinite(hessian.sum(0))).sum())
    if bad:
        raise StepFailed(
            f"the calibration statistics are not finite in {bad} of {columns} input columns",
            help="activations overflow on this calibration data: check the checkpoint, or store it in another dtype",
        )
    dead = diagonal == 0
    mean = float(diagonal.mean(dtype=torch.float64)) if hessian.device.type != "mps" else float(diagonal.mean())
    keys = diagonal if act_order else torch.arange(columns, 0, -1, device=hessian.device)
    order = torch.argsort(keys, stable=True)
    fraction = dampening_fraction
    while True:
        damped = _in_order(hessian, order)
        damped.diagonal().add_(fraction * mean).masked_fill_(dead[order], mean or 1.0)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            break
        fraction = max(2 * fraction, 1e-4)
        if fraction > MAX_DAMPENING:
            raise StepFailed(
                "the second moment of the inputs is not positive definite, whatever is added to its diagonal",
                help="give more calibration samples, or other calibration data",
            )
    del damped
    roots = lower.diagonal().clone()
    start = None
    if cross is not None and alpha:
        half = torch.linalg.solve_triangular(lower.mT, _in_order(cross, order), upper=True, left=False).tril_(-1)
        start = half.mul_(-alpha).div_(roots)
        start.diagonal().fill_(1.0)
    unit = lower.div_(roots)
    if start is not None:
        unit.diagonal().zero_()
        unit = torch.linalg.solve_triangular(start, unit, upper=False, left=False, unitriangular=True)
    # A factorization in Fortran's order is already contiguous when transposed.
    return Factor(order, unit.mT.contiguous(), roots.square_(), dead, fraction, fraction * mean, start)


def _in_order(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return matrix.index_select(0, order).index_select(1, order)


def quantize_weight(
    weight: torch.Tensor, factor: Factor, grid: Grid, *, keep_zeros: bool = False, positions: bool = False
) -> Solution:
    """Solve for integers on `grid`, each row of `weight` [out, in] independently of the others.

    Linears with the same input are best concatenated and solved as one: for a few thousand rows, the cost of a column
    is that of launching its operations. With `keep_zeros`, weights that are exactly zero stay zero and the others
    compensate for them, as in SparseGPT. With `positions`, the solution has them.
    """
    parts = []
    found = torch.empty(weight.shape, device=weight.device) if positions else None
    count = ROWS if weight.device.type == "cpu" else weight.shape[0]
    by_row = grid.by_row(weight.shape[0])
    for begin in range(0, weight.shape[0], count):
        rows = slice(begin, begin + count)
        own_grid = grid if grid.levels.per_tensor else by_row.rows(rows)
        parts.append(_solve(weight[rows], factor, own_grid, keep_zeros, None if found is None else found[rows]))
    integers, errors = zip(*parts, strict=True)
    return Solution(grid.pack(torch.cat(integers)), torch.cat(errors), found)


def output_energy(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return the diagonal of W H Wᵀ [out], float32.

    Only one half of the symmetric product is computed.
    """
    weight = weight.float()
    energy = torch.zeros(weight.shape[0], device=weight.device)
    block = max(BLOCK, weight.shape[1] // 16)
    for begin in range(0, weight.shape[1], block):
        own = weight[:, begin : begin + block]
        inside = own @ hessian[begin : begin + block, begin : begin + block]
        if begin + block < weight.shape[1]:
            inside.addmm_(weight[:, begin + block :], hessian[begin + block :, begin : begin + block], alpha=2)
        energy += torch.linalg.vecdot(inside, own)
    return energy


def _solve(
    weight: torch.Tensor, factor: Factor, grid: Grid, keep_zeros: bool, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integers [rows, K] uint8 and the error of each row; `positions` [rows, K] is filled where given.

    Works on transposed matrices: a column of the weight is contiguous there, and one operation treats all its rows.
    """
    rows, columns = weight.shape
    weight = weight.float()
    if bool(factor.dead.any()):
        weight = weight.masked_fill(factor.dead, 0.0)
    target = weight.T.index_select(0, factor.order)
    start = target
    if factor.start is not None:
        start = torch.linalg.solve_triangular(factor.start, target.T, upper=False, left=False, unitriangular=True)
        start = start.T.contiguous()
    keep = keep_zeros and not bool(target.all())
    levels = _Levels(grid, rows, factor.order)
    kernel = _kernel(weight.device.type) if grid.levels.numbers.is_integer else None
    errors = torch.empty_like(target)
    integers = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    lost = torch.zeros(rows, device=weight.device)
    for end in range(columns, 0, -BLOCK):
        block = slice(max(0, end - BLOCK), end)
        values = torch.addmm(start[block], factor.feedback[block, end:], errors[end:])
        own = values, target[block], errors[block], factor.feedback[block, block]
        if kernel is None:
            steps = _round_block(*own, levels, block, keep)
        else:
            steps = kernel(*own, levels.scale, levels.zero, levels.top, levels.group[block], keep)
        integers[block] = levels.integers(steps, block)
        if positions is not None:
            rounded = values / levels.scale[levels.group[block]]
            positions[:, factor.order[block]] = (rounded.masked_fill_(target[block] == 0, 0.0) if keep else rounded).T
        lost.addmv_(values.sub_(target[block]).add_(errors[block]).square_().T, factor.costs[block])
    if factor.start is None:
        lost.sub_(errors.square_().sum(0), alpha=factor.ridge).clamp_(min=0)
    return integers.index_select(0, factor.order.argsort()).T.contiguous(), lost


def _round_block(
    values: torch.Tensor,
    target: torch.Tensor,
    errors: torch.Tensor,
    feedback: torch.Tensor,
    levels: _Levels,
    block: slice,
    keep: bool,
) -> torch.Tensor:
    """Round the columns of one block from the last to the first; return q − z [columns, rows] as float32.

    values    [columns, rows]: (2) over all later blocks; completed in place
    target    [columns, rows]: w;  errors [columns, rows]: filled with w − s (q − z)
    feedback  [columns, columns]: the diagonal block of the factor's
    keep      what is zero in `target` stays zero
    """
    columns, rows = values.shape
    steps = torch.empty_like(values)
    nonzero = (target != 0).float() if keep else None
    # What one vector operation touches is sliced once for all inner blocks, as slicing costs as much as computing.
    recent = values.new_empty(INNER, rows)
    weights = values.new_empty(INNER, INNER)
    recent_rows = recent.unbind(0)
    later = [(recent[i + 1 :].T, weights[i, i + 1 :]) for i in range(INNER - 1)]
    for end in range(columns, 0, -INNER):
        begin = max(0, end - INNER)
        inner = slice(begin, end)
        skip = INNER - (end - begin)
        own = values[inner].addmm_(feedback[inner, end:], errors[end:])
        weights[skip:, skip:] = feedback[inner, inner]
        own_rows, target_rows, step_rows = own.unbind(0), target[inner].unbind(0), steps[inner].unbind(0)
        nonzero_rows = () if nonzero is None else nonzero[inner].unbind(0)
        for i in range(end - begin - 1, -1, -1):
            value, step, slot = own_rows[i], step_rows[i], i + skip
            if slot < INNER - 1:
                value.addmv_(*later[slot])
            group = levels.groups[block.start + begin + i]
            scale = levels.scales[group]
            torch.div(value, scale, out=step)
            if levels.floats is None:
                torch.clamp(step.round_(), levels.lowest[group], levels.highest[group], out=step)
            else:
                levels.floats.nearest_(step, step)
            if nonzero_rows:
                step.mul_(nonzero_rows[i])
            torch.addcmul(target_rows[i], scale, step, value=-1, out=recent_rows[slot])
        errors[inner] = recent[skip:]
    return steps


@cache
def _kernel(device: str) -> Any:
    """Return the Triton kernel that rounds a block; None on CPUs and without Triton, where torch operations do it."""
    if device != "cuda":
        return None
    try:
        from runner.methods.gptq_triton import round_block
    except ImportError:  # torch's builds for Windows and some for ROCm come without Triton
        return None
    return round_block


class _Levels:
    """A grid by group: `scale` and `zero` [G, rows]; `group` [K] is the group of each position in the column order."""

    def __init__(self, grid: Grid, rows: int, order: torch.Tensor) -> None:
        self.group = order // grid.levels.numbers.columns(order.numel())
        self.levels = grid.levels
        self.floats = None if grid.levels.numbers.is_integer else grid.levels
        self.scale = grid.scale.T.expand(-1, rows).contiguous()
        self.zero = grid.zeros().T.expand(-1, rows).contiguous()
        self.top = int(2**grid.levels.numbers.bits) - 1
        self._symmetric = grid.zero is None

    @cached_property
    def groups(self) -> list[int]:
        return list(self.group.tolist())

    @cached_property
    def scales(self) -> tuple[torch.Tensor, ...]:
        return self.scale.unbind(0)

    @cached_property
    def lowest(self) -> tuple[torch.Tensor, ...]:
        """Return the lowest q − z, by group."""
        return (-self.zero).unbind(0)

    @cached_property
    def highest(self) -> tuple[torch.Tensor, ...]:
        return (self.top - self.zero).unbind(0)

    def integers(self, steps: torch.Tensor, block: slice) -> torch.Tensor:
        zero = self.zero[0] if self._symmetric else self.zero[self.group[block]]
        return self.levels.codes_(steps.clone(), zero)
