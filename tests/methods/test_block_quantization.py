"""Scales of blocks, beside a search in float64 over many more of them."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from runner.methods import block_fits
from runner.methods.block_quantization import BlockFormat, dequantize, quantize


def naive_affine(x: np.ndarray, w: np.ndarray, top: int) -> float:
    """The least weighted squared error of levels s q + m, m ≤ 0, of the scales and minima of a fine grid."""
    low, high = min(0.0, float(x.min())), float(x.max())
    scales = np.linspace(0.5, 1.2, 60) * (high - low) / top
    best = np.inf
    for scale, minimum in itertools.product(scales, np.linspace(0.7, 1.1, 40) * low):
        q = np.clip(np.round((x - minimum) / scale), 0, top)
        best = min(best, float((w * (scale * q + minimum - x) ** 2).sum()))
    return best


def naive_centred(x: np.ndarray, w: np.ndarray, low: int, high: int) -> float:
    largest = float(np.abs(x).max())
    best = np.inf
    for scale in np.linspace(-1.6, 1.6, 4001) * largest / max(-low, high):
        if scale != 0:
            q = np.clip(np.round(x / scale), low, high)
            best = min(best, float((w * (scale * q - x) ** 2).sum()))
    return best


def test_scales_are_near_the_best_of_a_fine_grid() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 32, generator=generator)
    w = torch.rand(12, 32, generator=generator) + 0.05
    scale, minimum = block_fits.affine(x, w, 15)
    q = ((x - minimum[:, None]) / scale[:, None]).round().clamp(0, 15)
    found = (w * (scale[:, None] * q + minimum[:, None] - x).square()).sum(1)
    wanted = [naive_affine(a.numpy().astype(float), b.numpy().astype(float), 15) for a, b in zip(x, w, strict=True)]
    assert float(found.sum()) < 1.05 * sum(wanted)
    scale = block_fits.centred(x, w, -4, 3)
    q = (x / scale[:, None]).round().clamp(-4, 3)
    found = (w * (scale[:, None] * q - x).square()).sum(1)
    wanted = [naive_centred(a.numpy().astype(float), b.numpy().astype(float), -4, 3) for a, b in zip(x, w, strict=True)]
    assert float(found.sum()) < 1.05 * sum(wanted)


def test_two_levels_lose_less_than_scales_rounded_once() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(16, 256, generator=generator) * torch.rand(16, 1, generator=generator)
    format = BlockFormat(256, 0, 15, minimum=True, parts=8, scale_range=63)
    made = dequantize(quantize(weight, format), format)
    parts = weight.unflatten(1, (8, 32))
    fitted, low = block_fits.affine(parts, torch.ones_like(parts), 15)
    d, e = (fitted.amax(1) / 63).half().float(), (-low.amin(1) / 63).half().float()
    scale = ((fitted / d[:, None]).round() * d[:, None])[..., None]
    shift = ((-low / e[:, None]).round() * e[:, None])[..., None]
    once = ((parts + shift) / scale).round().clamp(0, 15) * scale - shift
    assert float((made - weight).square().sum()) < 0.98 * float((once.flatten(1) - weight).square().sum())


def test_columns_without_inputs_and_importance_of_zero_everywhere() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    format = BlockFormat(32, -8, 7)
    none = torch.zeros(64)
    assert torch.equal(quantize(weight, format, none).q, quantize(weight, format).q)
    importance = torch.ones(64)
    importance[:32] = 0
    assert torch.isfinite(dequantize(quantize(weight, format, importance), format)).all()
    assert quantize(weight, format, importance).q[:, :32].any()


def test_rows_are_rounded_alike_alone() -> None:
    weight = torch.randn(9, 64, generator=torch.Generator().manual_seed(5))
    format = BlockFormat(32, 0, 15, minimum=True)
    whole = quantize(weight, format)
    rows = [quantize(weight[n : n + 1], format) for n in range(9)]
    assert torch.equal(whole.q, torch.cat([row.q for row in rows]))


def test_errors_of_large_weights_count_more_where_that_is_asked_for() -> None:
    """Of a block the scale is that of the least error under importance · √(σ² + x²), by a fine grid."""
    generator = torch.Generator().manual_seed(4)
    weight, importance = torch.randn(6, 32, generator=generator), torch.rand(32, generator=generator) + 0.1
    format = BlockFormat(32, -8, 7, emphasized=True)
    w = importance * (weight.square() + weight.square().mean(1, keepdim=True)).sqrt()
    made = dequantize(quantize(weight, format, importance), format)
    wanted = [
        naive_centred(a.numpy().astype(float), b.numpy().astype(float), -8, 7) for a, b in zip(weight, w, strict=True)
    ]
    assert float((w * (made - weight).square()).sum()) < 1.05 * sum(wanted)
    plain = dequantize(quantize(weight, BlockFormat(32, -8, 7), importance), format)
    assert float((w * (made - weight).square()).sum()) < float((w * (plain - weight).square()).sum())
    assert torch.equal(quantize(weight, format).q, quantize(weight, BlockFormat(32, -8, 7)).q)
