"""Convert integers of a checkpoint to the layouts of MatMulNBits and DequantizeLinear. Pure functions on tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import ceil_div


class Blocks(NamedTuple):
    """The inputs of MatMulNBits for N outputs and K inputs in blocks of `size` columns, ⌈K / size⌉ = kb of them.

    weight       uint8 [N, kb, size · bits / 8], the lower half of a byte first; past column K the zero point
    scales       [N · kb]
    zero_points  uint8 [N · ⌈kb · bits / 8⌉], the lower half first; None: 2^(bits − 1)
    """

    weight: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    bits: int
    size: int


def blocks(q: Quantized, field: int, size: int, dtype: torch.dtype) -> Blocks:
    """Convert `q` to fields of `field` ≥ q.bits bits and blocks of `size` columns, which divides its group size.

    Symmetric integers of fewer bits are shifted by the difference of the two middles, so that the operator's default
    zero point is right; asymmetric ones stay. Scales of a group of several blocks, or of a row, are repeated.
    """
    rows, columns = q.integers.shape
    count = ceil_div(columns, size)
    shift = 2 ** (field - 1) - 2 ** (q.bits - 1) if q.symmetric else 0
    integers = q.integers + shift
    if columns % size:
        integers = torch.nn.functional.pad(integers, (0, count * size - columns), value=2 ** (field - 1))
    packed = integers if field == 8 else _halves(integers)
    zeros = None
    if q.zero_point is not None:
        spread = _spread(q.zero_point, q, rows, count, size)
        if field == 4:
            spread = _halves(spread if count % 2 == 0 else torch.nn.functional.pad(spread, (0, 1)))
        zeros = spread.reshape(-1).contiguous()
    scales = _spread(q.scale, q, rows, count, size).to(dtype).reshape(-1).contiguous()
    return Blocks(packed.reshape(rows, count, size * field // 8), scales, zeros, field, size)


def _spread(values: torch.Tensor, q: Quantized, rows: int, count: int, size: int) -> torch.Tensor:
    """Expand values of groups to blocks: [out, G] or [1, 1] → [out, kb]."""
    if q.strategy != "group":
        return values.expand(rows, count)
    return values.repeat_interleave(q.group_size // size, dim=1)[:, :count]


class Signed(NamedTuple):
    """The inputs of DequantizeLinear for a weight [K, N]: symmetric integers around zero.

    weight   int8 [K, N]; of 4 bits uint8 [K · N / 2], the lower half of a byte first
    scales   [K / group, N], [N] of a weight with a scale for each output, or [] of one with a single scale
    """

    weight: torch.Tensor
    scales: torch.Tensor


def signed(q: Quantized, field: int, dtype: torch.dtype) -> Signed:
    """Convert a symmetric `q` to integers in −2^(bits−1) .. 2^(bits−1) − 1, in fields of 4 or 8 bits."""
    integers = q.integers.t().contiguous()
    middle = 2 ** (q.bits - 1)
    if field == 8:
        weight = (integers.to(torch.int16) - middle).to(torch.int8)
    else:
        weight = _halves(((integers - middle) & 15).reshape(1, -1)).reshape(-1)  # two's complement of 4 bits
    scales = q.scale.to(dtype)
    if q.strategy == "group":
        return Signed(weight, scales.t().contiguous())
    return Signed(weight, scales.reshape(-1) if q.strategy == "channel" else scales.reshape(()))


def _halves(values: torch.Tensor) -> torch.Tensor:
    """Pack uint8 [R, C], C even, each below 16, into uint8 [R, C / 2]."""
    return (values[:, 0::2] | (values[:, 1::2] << 4)).contiguous()
