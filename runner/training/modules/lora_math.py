"""The maths of adapters, as pure functions. W [out, in], A [r, in], B [out, r], m [out].

    LoRA   W + s·B·A                          Hu 2021 (arXiv:2106.09685), eq. 3
    DoRA   m · (W + s·B·A) / ‖W + s·B·A‖      Liu 2024 (arXiv:2402.09353), eq. 5; the norm is that of each row, over the
                                              inputs, and counts as a constant in the backward (section 4.3)

s is α / r, or α / √r for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). Under a mask, M ⊙ (W + s·B·A) replaces
W + s·B·A, in DoRA's norm too; M is 1 where W is not zero.

Everything is computed in float32, or in float64 if W is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from runner.training.zero_masks import HELD


def merged(
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    magnitude: torch.Tensor | None = None,
    *,
    masked: bool = False,
) -> torch.Tensor:
    """Merge the adapter into the weight, rounded once to the type of `weight`. `masked`: every zero keeps its bits."""
    found = adapted_weight(weight, a, b, scale, masked=masked)
    if magnitude is not None:
        found = found * (magnitude.to(found.dtype) / row_norms(found))[:, None]
    found = found.to(weight.dtype)
    return torch.where(weight == 0, weight, found) if masked else found


def adapted_weight(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, *, masked: bool = False
) -> torch.Tensor:
    """Return W + s·B·A, or M ⊙ (W + s·B·A), in the working type."""
    working = torch.float64 if weight.dtype == torch.float64 else torch.float32
    found = weight.to(working) + scale * (b.to(working) @ a.to(working))
    return found.masked_fill_(weight == 0, 0) if masked else found


def row_norms(weight: torch.Tensor) -> torch.Tensor:
    """Return ‖W‖ of every row [out]; 1 for a row of zeros, so that its quotient is not NaN."""
    norms: torch.Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms.masked_fill(norms == 0, 1)


def is_pruned(weight: torch.Tensor, bits: int | None = None) -> bool:
    """Return whether a weight [out, in] was pruned, by its zeros.

    A dense one: at least HELD of it, or a full row, is exactly zero. One dequantized from `bits` bits, where many small
    weights round to zero: two of every four neighbours are zero, or, at 3 bits and more, 45 % of all; round to nearest
    makes about 30 % of normally distributed weights zero at 3 bits, fewer at more.
    """
    zeros = weight == 0
    part = float(zeros.float().mean())
    if bits is None:
        return part >= HELD or bool(zeros.all(1).any())
    if bits >= 3 and part >= 0.45:
        return True
    if weight.shape[1] % 4 or part < 0.45:
        return False
    return bool((zeros.view(weight.shape[0], -1, 4).sum(-1) >= 2).all())


def product(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    masked: bool,
    weight: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Return x Vᵀ [..., out] with V = W + s·B·A, or M ⊙ (W + s·B·A), for x [..., in], in the type of x.

    `weight()` returns W in the forward and again in the backward, so that no matrix of its size is stored in between.
    """
    found: torch.Tensor = _Product.apply(x, a, b, scale, masked, weight)  # type: ignore[no-untyped-call]
    return found


def computing(x: torch.Tensor) -> torch.Tensor:
    """Return the input in the type that products run in: autocast's where it is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class _Product(torch.autograd.Function):
    """`product`, with G = Σ gᵀx over tokens (masked like V): dL/dB = s·G·Aᵀ, dL/dA = s·Bᵀ·G, dL/dx = g·V."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, masked: bool, weight: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.scale, ctx.masked, ctx.weight = scale, masked, weight
        with torch.autocast(x.device.type, enabled=False):
            return x @ adapted_weight(weight(), a, b, scale, masked=masked).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, a, b = ctx.saved_tensors
        weight = ctx.weight()
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ adapted_weight(weight, a, b, ctx.scale, masked=ctx.masked).to(gradient.dtype)
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_weight = (rows.T @ x.reshape(-1, x.shape[-1])).to(b.dtype)
        if ctx.masked:
            to_weight.masked_fill_(weight == 0, 0)
        to_weight *= ctx.scale
        return to_x, b.T @ to_weight, to_weight @ a.T, None, None, None
