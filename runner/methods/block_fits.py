"""Scales of small blocks by least weighted squared error, for levels that a block format of integers has.

A block is a row of x [..., B] with weights w [..., B] ≥ 0. Its levels are

    affine     s · q + m, q = 0 … top, s ≥ 0      (m ≤ 0 unless `free`)
    centred    s · q, q = low … high, s of either sign
    codebook   s · c[q], c a table of levels, s of either sign

For many step sizes around the one that spans the block, values are rounded and the scale (and minimum) solved for by
least squares; the best of them is improved by rounding and solving again. The quantizers of llama.cpp search so without
that last part (make_qkx3_quants, make_qx_quants, quantize_row_iq4_nl_impl in ggml-quants.c). All tensors are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

Tensor = torch.Tensor
SPANS = tuple(0.1 * step for step in range(-9, 10))  # levels more or fewer than span a block
LOWEST = (1.0, 0.9)  # minima tried, of the smallest value
ROUNDS = 2  # of rounding and solving again
_TINY = 1e-30
_FLAT = 1e-6


class _Fit(NamedTuple):
    """What a search has found so far. `error` is the squared error less Σ w x²."""

    error: Tensor
    scale: Tensor
    minimum: Tensor


def affine(x: Tensor, w: Tensor, top: int, *, free: bool = False) -> tuple[Tensor, Tensor]:
    """Return scales s ≥ 0 [...] and minima m [...] of affine levels, m ≤ 0 unless `free`."""
    low = x.amin(-1) if free else x.amin(-1).clamp_max(0)
    width = (x.amax(-1) - low).clamp_min(0)
    weighed = w * x
    total, first = w.sum(-1), weighed.sum(-1)

    def solved(scale: Tensor, minimum: Tensor) -> _Fit:
        q = rounded((x - minimum[..., None]) * inverse(scale)[..., None], 0, top)
        wq = w * q
        ones, squares, product = wq.sum(-1), (wq * q).sum(-1), (weighed * q).sum(-1)
        determinant = total * squares - ones.square()
        s = (total * product - first * ones) * inverse(determinant)
        m = (squares * first - ones * product) * inverse(determinant)
        flat = determinant <= _FLAT * total * squares  # one level alone
        s, m = torch.where(flat, 0, s), torch.where(flat, first * inverse(total), m)
        if not free:
            s, m = torch.where(m > 0, product * inverse(squares), s), m.clamp_max(0)
        s = s.clamp_min(0)
        error = s * (s * squares + 2 * (m * ones - product)) + m * (m * total - 2 * first)
        return _Fit(error, s, m)

    best = solved(width / top, low)
    for part in LOWEST:
        for span in SPANS:
            best = _better(best, solved((width + (part - 1) * low) / (top + span), part * low))
    for _ in range(ROUNDS):
        best = _better(best, solved(best.scale, best.minimum))
    return best.scale, best.minimum


def centred(x: Tensor, w: Tensor, low: int, high: int) -> Tensor:
    """Return scales s [...] of centred levels."""
    return _scales(x, w, lambda t: rounded(t, low, high), max(-low, high), 1)


def codebook(x: Tensor, w: Tensor, levels: Tensor) -> Tensor:
    """Return scales s [...] of the levels of a sorted table [L]."""
    spacing = float(levels.diff().max()) / 2
    return _scales(x, w, lambda t: levels[nearest(t, levels)], float(levels.abs().max()), spacing)


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Return the places of the nearest levels of a sorted table [L]."""
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)


def rounded(t: Tensor, low: int, high: int) -> Tensor:
    """Round `t` in place to integers of a range."""
    return t.round_().clamp_(low, high)


def inverse(t: Tensor) -> Tensor:
    """Return 1 / t, 0 where t is 0."""
    return torch.where(t.abs() > _TINY, 1 / t, 0)


def _scales(x: Tensor, w: Tensor, quantize: Callable[[Tensor], Tensor], largest: float, spacing: float) -> Tensor:
    """Return the best scales of levels that `quantize` rounds to; the largest has the absolute value `largest`."""
    reach = x.abs().amax(-1)
    weighed = w * x

    def solved(scale: Tensor) -> _Fit:
        q = quantize(x * inverse(scale)[..., None])
        product, squares = (weighed * q).sum(-1), (w * q * q).sum(-1)
        s = product * inverse(squares)
        return _Fit(-s * product, s, s)

    best = solved(reach / largest)
    for sign in (1, -1):
        for span in SPANS:
            best = _better(best, solved(sign * reach / (largest + spacing * span)))
    for _ in range(ROUNDS):
        best = _better(best, solved(best.scale))
    return best.scale


def _better(one: _Fit, other: _Fit) -> _Fit:
    less = other.error < one.error
    return _Fit(*(torch.where(less, b, a) for a, b in zip(one, other, strict=True)))
