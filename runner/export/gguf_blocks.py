"""Pack integers of a checkpoint into the blocks of GGUF: 32 columns of a row that share an fp16 scale. Numpy.

Q4_0  scale, 16 bytes of two fields of 4 bits: w = s · (q − 8); column i below column i + 16 in a byte
Q4_1  scale, minimum, 16 such bytes:           w = s · q + m
Q8_0  scale, 32 signed bytes:                  w = s · q
(ggml-common.h of llama.cpp: block_q4_0, block_q4_1, block_q8_0)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.model.checkpoint.quantization.scheme import Scheme

BLOCK = 32
Array = NDArray[np.generic]


class Integers(NamedTuple):
    """A weight [out, in] as s · (q − z).

    `values` q are int16 [out, in], `zeros` z int16 [out, in / 32], `scales` s float32 [out, in / 32].
    """

    values: Array
    zeros: Array
    scales: NDArray[np.float32]


class Blocks(NamedTuple):
    """uint8 [out, in / 32 · bytes of a block], and the largest relative error of a scale or minimum in fp16."""

    data: NDArray[np.uint8]
    rounding: float


def block_type_for(scheme: Scheme) -> str | tuple[str, str]:
    """Return the block type for a scheme's integers; or (what is wrong, remedy), to follow the module's name."""
    if not scheme.is_integer:
        return (
            f"is stored as {scheme.describe()}; blocks of GGUF hold integer weights, with inputs as they are",
            "quantize with `bits` instead of `scheme`, or write the dense checkpoint",
        )
    group = scheme.group_size
    if isinstance(group, int) and group % BLOCK:
        return (
            f"has group_size {group}; blocks of GGUF have {BLOCK} columns and one scale",
            f"quantize with a group_size that is a multiple of {BLOCK}",
        )
    if scheme.bits <= 4:
        return "q4_0" if scheme.symmetric else "q4_1"
    if scheme.symmetric or scheme.bits < 8:
        return "q8_0"
    return (
        "has asymmetric 8-bit integers, which less their zero point do not fit the 8 bits of Q8_0",
        "quantize with `symmetric: true`, or with at most 7 bits",
    )


def q4_0(weight: Integers) -> Blocks:
    """Pack symmetric integers of at most 4 bits; exact where fp16 holds the scales."""
    values = _centred(weight) + 8
    scales, rounding = _half(weight.scales)
    return Blocks(_joined([scales, _nibbles(values)]), rounding)


def q4_1(weight: Integers) -> Blocks:
    """Pack integers of at most 4 bits with any zero point; the minimum −s · z is rounded to fp16."""
    scales, first = _half(weight.scales)
    minima, second = _half(-scales.view(np.float16)[..., 0].astype(np.float32) * weight.zeros.astype(np.float32))
    return Blocks(_joined([scales, minima, _nibbles(weight.values)]), max(first, second))


def q8_0(weight: Integers) -> Blocks:
    """Pack integers that less their zero point are in −128 .. 127; exact where fp16 holds the scales."""
    scales, rounding = _half(weight.scales)
    return Blocks(_joined([scales, _centred(weight).astype(np.int8).view(np.uint8)]), rounding)


PACKERS = {"q4_0": q4_0, "q4_1": q4_1, "q8_0": q8_0}


def _blocked(values: Array) -> Array:
    return values.reshape(values.shape[0], -1, BLOCK)


def _centred(weight: Integers) -> Array:
    centred: Array = _blocked(weight.values) - weight.zeros[..., None]  # type: ignore[operator]
    return centred


def _half(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """Convert float32 [out, B] to the bytes of fp16 [out, B, 2], with the largest relative error.

    OverflowError where a value is out of range.
    """
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise OverflowError(f"a scale of {float(np.abs(values).max()):g} is beyond what fp16 holds (65504)")
    gap = np.abs(half.astype(np.float32) - values)
    scale = np.abs(values)
    rounding = float((gap[scale > 0] / scale[scale > 0]).max(initial=0.0))
    return half.view(np.uint8).reshape(*values.shape, 2), rounding


def _nibbles(values: Array) -> NDArray[np.uint8]:
    """Pack [out, in] or [out, B, 32], each in 0..15, into uint8 [out, B, 16]."""
    blocked = _blocked(values).astype(np.uint8)
    return blocked[..., :16] | (blocked[..., 16:] << np.uint8(4))


def _joined(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    joined = np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(joined.reshape(joined.shape[0], -1))


def permutation(rows: int, heads: int) -> NDArray[np.int64]:
    """Return llama.cpp's order of the rows of a query or key weight.

    It rotates neighbours (0, 1), (2, 3) … of a head where transformers rotates halves (convert_hf_to_gguf.py,
    LlamaModel.permute).
    """
    order: NDArray[np.int64] = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
    return order
