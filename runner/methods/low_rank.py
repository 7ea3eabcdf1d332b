"""EoRA (Liu et al. 2024, arXiv:2410.21271): the low-rank term that best compensates a linear's compression error.

With E = W − Ŵ [out, in] the error of a compressed weight Ŵ and H = S Sᵀ [in, in] the second moment of its inputs, the
error of the output is ‖E S‖²_F (the paper's S is Q Λ^½ of H = Q Λ Qᵀ). By Eckart and Young the best term B A of rank r
has B A S = U Σ Vᵀ, the leading r triples of the singular value decomposition of E S, so the paper's closed form is
B = U Σ, A = Vᵀ S⁻¹. Since Σ Vᵀ = Uᵀ E S, that product is U Uᵀ E: no inverse is taken here, and a root of H only where
it makes the eigenvalue problem smaller.

In a compressed model the inputs X of a linear are no longer those X° of the original one. The target is W X°, so the
error to compensate is that of the W* with the least ‖W X° − W* X‖_F, as in GPTAQ (Li 2025,
arXiv:2504.02692): W* = W (H + C) H⁻¹ with C = (X° − X) Xᵀ, hence E = W − Ŵ + W C H⁻¹. With C = 0 it is the paper's; for
weights that GPTAQ has shifted on purpose, the paper's E would undo the shift.

All functions are pure; tensors are float32.
"""

from __future__ import annotations

import torch

_ATTEMPTS = 8


def compensate(error: torch.Tensor, moment: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (A [rank, in], B [out, rank]) with the least ‖(E − B A) S‖_F, S Sᵀ = moment.

    `error` is E [out, in], `moment` H [in, in], symmetric and positive definite (`damped`). The rows of A and the
    columns of B share their norms evenly, so that both keep their digits in a half-precision type.
    """
    out_features, in_features = error.shape
    if out_features <= in_features:
        left = _leading(error @ moment @ error.T, rank)[1]
    else:
        projected = error @ torch.linalg.cholesky(moment)
        values, right = _leading(projected.T @ projected, rank)
        left = projected @ right / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    a = left.T @ error
    norms = a.norm(dim=1).sqrt()
    nonzero = norms > 0
    safe = torch.where(nonzero, norms, torch.ones_like(norms))
    return a / safe[:, None], left * norms


def shift(weight: torch.Tensor, cross: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Return W C H⁻¹ [out, in]: the change of W with which it gives, on inputs X, what it gives on inputs X°.

    `cross` is C [in, in], `moment` H [in, in], symmetric and positive definite (`damped`), on one scale.
    """
    factor = torch.linalg.cholesky(moment)
    return torch.cholesky_solve((weight @ cross).T, factor).T


def damped(moment: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return H + fraction · mean(diag H) · I, the fraction raised tenfold until the sum is positive definite.

    A moment that is all zeros (inputs that are always zero) becomes I, so that every error counts alike.
    """
    mean = moment.diagonal().mean()
    if not mean > 0:
        return torch.eye(moment.shape[0], dtype=moment.dtype, device=moment.device)
    for attempt in range(_ATTEMPTS):
        result = moment.clone()
        result.diagonal().add_(fraction * 10**attempt * mean)
        if int(torch.linalg.cholesky_ex(result).info) == 0:
            return result
    raise ValueError("the second moment of the inputs is not positive definite under any damping: it holds NaN")


def energy(weight: torch.Tensor, moment: torch.Tensor) -> float:
    """Return tr(W H Wᵀ) = ‖W S‖²_F of W [rows, in]: the squared norm of the outputs."""
    return float(((weight @ moment) * weight).sum(dtype=torch.float64))


def _leading(symmetric: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` largest eigenvalues in descending order, and their eigenvectors [n, count]."""
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    order = slice(values.shape[0] - count, None)
    return values[order].flip(0), vectors[:, order].flip(1)
