"""The bytes of GGUF's blocks, of integers of `runner.methods.block_quantization` (ggml-common.h of llama.cpp).

    q4_0 iq4_nl  d, 16 × two fields of 4 bits         q5_0  d, 32 high bits, 16 × two fields       q8_0  d, 32 bytes
    q4_1         d, m, 16 × two fields                q5_1  d, m, 32 high bits, 16 × two fields
    q2_k  16 × (scale, minimum) of 4 bits, 64 × four fields of 2 bits, d, e
    q3_k  256 high bits, 64 × four fields of 2 bits, 16 scales of 6 bits, d
    q4_k  d, e, 8 × (scale, minimum) of 6 bits, 128 × two fields of 4 bits
    q5_k  d, e, 8 × (scale, minimum) of 6 bits, 256 high bits, 128 × two fields
    q6_k  128 × two fields of 4 bits, 64 × four fields of 2 high bits, 16 scales of 8 bits, d

d and m are the scale and minimum of a block in float16, e that of the minima. Numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from runner.methods.block_quantization import BlockFormat, Rounded

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int16]
# kvalues_iq4nl of ggml-common.h
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FORMATS: Mapping[str, BlockFormat] = {
    "q4_0": BlockFormat(32, -8, 7, emphasized=True), "q4_1": BlockFormat(32, 0, 15, minimum=True),
    "q5_0": BlockFormat(32, -16, 15), "q5_1": BlockFormat(32, 0, 31, minimum=True), "q8_0": BlockFormat(32, -127, 127),
    "iq4_nl": BlockFormat(32, 0, 15, codebook=_IQ4_NL, emphasized=True),
    "q2_k": BlockFormat(256, 0, 3, minimum=True, parts=16, scale_range=15),
    "q3_k": BlockFormat(256, -4, 3, parts=16, scale_range=32),
    "q4_k": BlockFormat(256, 0, 15, minimum=True, parts=8, scale_range=63),
    "q5_k": BlockFormat(256, 0, 31, minimum=True, parts=8, scale_range=63),
    "q6_k": BlockFormat(256, -32, 31, parts=16, scale_range=128),
}  # fmt: skip


def pack(found: Rounded, type: str) -> Bytes:
    """Return uint8 [rows, bytes of a row] of a rounded weight."""
    format = FORMATS[type]
    q = found.q.cpu().numpy().reshape(-1, found.q.shape[1] // format.size, format.size) - np.int16(format.low)
    parts = _PACKERS[type](q, found)
    return np.ascontiguousarray(np.concatenate(parts, axis=-1).reshape(len(q), -1))


def _half(values: object) -> Bytes:
    """Return the bytes [rows, blocks, 2] of float16-valued scales."""
    half: Bytes = values.cpu().numpy().astype(np.float16).view(np.uint8)  # type: ignore[attr-defined]
    return half.reshape(*half.shape[:-1], -1, 2)


def _integers(values: object, parts: int) -> Ints:
    found: Ints = values.cpu().numpy()  # type: ignore[attr-defined]
    return found.reshape(len(found), -1, parts)


def _ends(found: Rounded) -> list[Bytes]:
    return [_half(found.scale)] if found.minimum is None else [_half(found.scale), _half(found.minimum)]


def _byte(values: Ints) -> Bytes:
    return values.astype(np.uint8)


def _nibbles(q: Ints, width: int) -> Bytes:
    """Put two fields of 4 bits into a byte: of runs of 2 × `width` columns, the second half over the first."""
    runs = q.reshape(*q.shape[:2], -1, 2, width)
    return _byte(runs[..., 0, :] & 15 | (runs[..., 1, :] & 15) << 4).reshape(*q.shape[:2], -1)


def _pairs(q: Ints) -> Bytes:
    """Put four fields of 2 bits into a byte, of runs of 4 × 32 columns."""
    runs = q.reshape(*q.shape[:2], -1, 4, 32)
    joined = runs[..., 0, :] | runs[..., 1, :] << 2 | runs[..., 2, :] << 4 | runs[..., 3, :] << 6
    return _byte(joined).reshape(*q.shape[:2], -1)


def _high(q: Ints, bit: int) -> Bytes:
    """Put one bit of each of 32 columns into four bytes, or of each of 8 × 32 columns into the bits of 32 bytes."""
    bits = q >> bit & 1
    if q.shape[-1] == 32:
        return np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little")
    runs = bits.reshape(*q.shape[:2], 8, 32)
    return np.packbits(runs.astype(np.uint8), axis=-2, bitorder="little").reshape(*q.shape[:2], 32)


def _small(q: Ints, found: Rounded) -> list[Bytes]:
    return [*_ends(found), _nibbles(q, 16)]


def _small_5(q: Ints, found: Rounded) -> list[Bytes]:
    return [*_ends(found), _high(q, 4), _nibbles(q, 16)]


def _q8_0(q: Ints, found: Rounded) -> list[Bytes]:
    return [*_ends(found), (q - 127).astype(np.int8).view(np.uint8)]


def _q2_k(q: Ints, found: Rounded) -> list[Bytes]:
    scales = _byte(_integers(found.scales, 16) | _integers(found.minima, 16) << 4)
    return [scales, _pairs(q), *_ends(found)]


def _q3_k(q: Ints, found: Rounded) -> list[Bytes]:
    scales = _integers(found.scales, 16) + 32
    low = scales[..., :8] & 15 | (scales[..., 8:] & 15) << 4
    top = scales.reshape(*scales.shape[:2], 4, 4) >> 4
    high = top[..., 0, :] | top[..., 1, :] << 2 | top[..., 2, :] << 4 | top[..., 3, :] << 6
    return [_high(q, 2), _pairs(q & 3), _byte(low), _byte(high), *_ends(found)]


def _six_bits(found: Rounded) -> Bytes:
    """Put 8 scales and 8 minima of 6 bits into 12 bytes."""
    scales, minima = _integers(found.scales, 8), _integers(found.minima, 8)
    first = scales[..., :4] | scales[..., 4:] >> 4 << 6
    second = minima[..., :4] | minima[..., 4:] >> 4 << 6
    return np.concatenate([_byte(first), _byte(second), _byte(scales[..., 4:] & 15 | (minima[..., 4:] & 15) << 4)], -1)


def _q4_k(q: Ints, found: Rounded) -> list[Bytes]:
    return [*_ends(found), _six_bits(found), _nibbles(q, 32)]


def _q5_k(q: Ints, found: Rounded) -> list[Bytes]:
    return [*_ends(found), _six_bits(found), _high(q, 4), _nibbles(q, 32)]


def _q6_k(q: Ints, found: Rounded) -> list[Bytes]:
    scales = _integers(found.scales, 16).astype(np.int8).view(np.uint8)
    return [_nibbles(q, 64), _pairs(q >> 4), scales, *_ends(found)]


_PACKERS: Mapping[str, Callable[[Ints, Rounded], list[Bytes]]] = {
    "q4_0": _small, "q4_1": _small, "iq4_nl": _small, "q5_0": _small_5, "q5_1": _small_5, "q8_0": _q8_0,
    "q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
}  # fmt: skip
