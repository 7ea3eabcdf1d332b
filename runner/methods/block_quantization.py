"""Round weights to blocks of integers with scales in one or two levels: the formats of llama.cpp.

    one level    blocks of 32 columns                     s · (q + offset), or s · q + m
    codebook     blocks of 32 columns                     s · c[q]
    two levels   blocks of 256 columns, 8 or 16 parts     d · s_p · (q + offset), or d · s_p · q − e · m_p

s, m, d and e are stored in float16, s_p and m_p as small integers. `block_fits` finds the scales of each part; with two
levels the integers of each part and then d and e are improved in turn, each time for the blocks whose error falls, so
that the error is at most that of rounding the scales once, as llama.cpp does. Torch, float32, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from runner.methods import block_fits
from runner.methods.block_fits import inverse, rounded

Tensor = torch.Tensor
CHUNK = 1 << 20  # weights that are rounded at once: a few times that is in memory
ROUNDS = 2  # of improving the scales of two levels
HALF = 65504.0


@dataclass(frozen=True)
class BlockFormat:
    """The levels of a block of `size` columns in `parts` with a scale each.

    q is in low … high; `minimum` says that a part has one. Scales of two levels are integers in
    −scale_range … scale_range − 1, or 0 … scale_range with minima, for which the same range holds. `codebook` has the
    levels that q stands for, sorted. `emphasized`: where importance is given, the error of a weight x counts by
    √(σ² + x²) too, σ² the mean square of its row (quantize_row_q4_0_impl and others in ggml-quants.c of llama.cpp).
    """

    size: int
    low: int
    high: int
    minimum: bool = False
    parts: int = 1
    scale_range: int = 0
    codebook: tuple[int, ...] = ()
    emphasized: bool = False


class Rounded(NamedTuple):
    """Integers q int16 [rows, columns]; of one level `scale` and `minimum`, float16-valued [rows, blocks].

    Of two levels those are d and e (with which m_p is subtracted), and `scales` and `minima` [rows, parts of the row],
    int16, are theirs. Minima are None where the format has none.
    """

    q: Tensor
    scale: Tensor
    minimum: Tensor | None
    scales: Tensor | None = None
    minima: Tensor | None = None


def quantize(weight: Tensor, format: BlockFormat, importance: Tensor | None = None) -> Rounded:
    """Round a weight [rows, columns], columns a multiple of the block; `importance` [columns] weighs squared errors.

    OverflowError where a scale is beyond what float16 holds.
    """
    rows = max(1, CHUNK // weight.shape[1])
    weights = torch.ones(weight.shape[1]) if importance is None else _positive(importance)
    emphasized = format.emphasized and importance is not None
    found = [_rows(part.float(), weights.to(part.device), format, emphasized) for part in weight.split(rows)]
    whole = Rounded(
        torch.cat([each.q for each in found]), torch.cat([each.scale for each in found]),
        _joined([each.minimum for each in found]), _joined([each.scales for each in found]),
        _joined([each.minima for each in found]),
    )  # fmt: skip
    for scale in (whole.scale, whole.minimum):
        if scale is not None and not bool(torch.isfinite(scale).all()):
            raise OverflowError(f"a scale is beyond what float16 holds ({HALF:g})")
    return whole


def dequantize(found: Rounded, format: BlockFormat) -> Tensor:
    """Return the float32 weight [rows, columns] that integers stand for."""
    q = found.q if not format.codebook else torch.tensor(format.codebook, device=found.q.device)[found.q.long()]
    parts = q.unflatten(1, (-1, format.size // format.parts)).float()
    scale, minimum = steps(found, format)
    value = parts * scale[..., None]
    return torch.flatten(value if minimum is None else value + minimum[..., None], 1)


def steps(found: Rounded, format: BlockFormat) -> tuple[Tensor, Tensor | None]:
    """Return the scale and the minimum of each part [rows, parts of the row], float32: its weights are s · q + m."""
    if found.scales is None:
        return found.scale, found.minimum
    scale = found.scale[..., None] * found.scales.unflatten(1, (-1, format.parts))
    if found.minimum is None or found.minima is None:
        return scale.flatten(1), None
    return scale.flatten(1), -(found.minimum[..., None] * found.minima.unflatten(1, (-1, format.parts))).flatten(1)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    return torch.cat([part for part in parts if part is not None]) if parts[0] is not None else None


def _positive(importance: Tensor) -> Tensor:
    """Return importance in units of its mean, and never 0: a column without inputs has errors too."""
    mean = importance.float().mean()
    return (importance.float() / mean).clamp_min(1e-4) if mean > 0 else torch.ones_like(importance)


def _rows(weight: Tensor, importance: Tensor, format: BlockFormat, emphasized: bool) -> Rounded:
    shape = (-1, format.parts, format.size // format.parts)
    x = weight.unflatten(1, shape)
    w = importance.unflatten(0, shape).expand_as(x)
    if emphasized:
        w = w * (x.square() + weight.square().mean(1)[:, None, None, None]).sqrt()
    if format.scale_range:
        return _two_levels(x, w, format)
    x, w = x.flatten(-2), w.flatten(-2)
    if format.codebook:
        levels = torch.tensor(format.codebook, dtype=torch.float32, device=x.device)
        scale = _half(block_fits.codebook(x, w, levels))
        q = block_fits.nearest(x * inverse(scale)[..., None], levels)
        return Rounded(q.flatten(1).to(torch.int16), scale, None)
    if format.minimum:
        fitted, low = block_fits.affine(x, w, format.high, free=True)
        scale, minimum = _half(fitted), _half(low)
        q = rounded((x - minimum[..., None]) * inverse(scale)[..., None], 0, format.high)
        return Rounded(q.flatten(1).to(torch.int16), scale, minimum)
    scale = _half(block_fits.centred(x, w, format.low, format.high))
    q = rounded(x * inverse(scale)[..., None], format.low, format.high)
    return Rounded(q.flatten(1).to(torch.int16), scale, None)


class _State(NamedTuple):
    """Blocks [rows, blocks] of two levels: d and e there, s and m [..., parts], q [..., parts, B], and their error."""

    d: Tensor
    e: Tensor
    s: Tensor
    m: Tensor
    q: Tensor
    error: Tensor


def _two_levels(x: Tensor, w: Tensor, format: BlockFormat) -> Rounded:
    """Round x [rows, blocks, parts, B]."""
    most = format.scale_range
    if format.minimum:
        fitted, low = block_fits.affine(x, w, format.high)
        d, e = _half(fitted.amax(-1) / most), _half((-low).amax(-1) / most)
        s = rounded(fitted * inverse(d)[..., None], 0, most)
        m = rounded(-low * inverse(e)[..., None], 0, most)
    else:
        fitted = block_fits.centred(x, w, format.low, format.high)
        widest = fitted.gather(-1, fitted.abs().argmax(-1, keepdim=True))[..., 0]
        d, e = _half(-widest / most), torch.zeros_like(widest)
        s = rounded(fitted * inverse(d)[..., None], -most, most - 1)
        m = torch.zeros_like(s)
    best = _improved(x, w, d, e, s, m, format)
    for _ in range(ROUNDS):
        d, e = _solved(x, w, best, format)
        new = _improved(x, w, d, e, best.s, best.m, format)
        less = new.error < best.error
        best = _State(*(
            torch.where(less.reshape(less.shape + (1,) * (b.ndim - less.ndim)), b, a)
            for a, b in zip(best, new, strict=True)
        ))  # fmt: skip
    integers = [t.flatten(1).to(torch.int16) for t in (best.q.flatten(1), best.s, best.m)]
    if not format.minimum:
        return Rounded(integers[0], best.d, None, integers[1], None)
    return Rounded(integers[0], best.d, best.e, integers[1], integers[2])


def _improved(x: Tensor, w: Tensor, d: Tensor, e: Tensor, s: Tensor, m: Tensor, format: BlockFormat) -> _State:
    """Return the best integers of each part among the given ones and their neighbours, for d and e as they are."""
    most = format.scale_range
    lowest, highest = (0, most) if format.minimum else (-most, most - 1)

    def tried(up: int, more: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, offset = (s + up).clamp(lowest, highest), (m + more).clamp(0, most)
        step, shift = (d[..., None] * scale)[..., None], (e[..., None] * offset)[..., None]
        q = rounded((x + shift) * inverse(step), format.low, format.high)
        return ((q * step - shift - x).square_() * w).sum(-1), scale, offset, q

    best = tried(0, 0)
    for up in (0, 1, -1):
        for more in (0, 1, -1) if format.minimum else (0,):
            if up or more:
                new = tried(up, more)
                less = new[0] < best[0]
                error, scale, offset = (torch.where(less, b, a) for a, b in zip(best[:3], new[:3], strict=True))
                best = error, scale, offset, torch.where(less[..., None], new[3], best[3])
    return _State(d, e, best[1], best[2], best[3], best[0].sum(-1))


def _solved(x: Tensor, w: Tensor, now: _State, format: BlockFormat) -> tuple[Tensor, Tensor]:
    """Return the d and e of least error for integers as they are: x ≈ d · a − e · b, a = s q, b = m."""
    a = now.s[..., None] * now.q
    aa, ax = (w * a * a).sum((-1, -2)), (w * a * x).sum((-1, -2))
    if not format.minimum:
        return _half(ax * inverse(aa)), now.e
    b = now.m[..., None]
    bb, ab, bx = (w * b * b).sum((-1, -2)), (w * a * b).sum((-1, -2)), (w * b * x).sum((-1, -2))
    determinant = aa * bb - ab.square()
    sound = determinant > 1e-6 * aa * bb
    d = torch.where(sound, (ax * bb - ab * bx) * inverse(determinant), now.d)
    e = torch.where(sound, (ab * ax - aa * bx) * inverse(determinant), now.e)
    return _half(torch.where((d > 0) & (e >= 0), d, now.d)), _half(torch.where((d > 0) & (e >= 0), e, now.e))


def _half(t: Tensor) -> Tensor:
    return t.half().float()
