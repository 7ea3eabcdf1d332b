"""GPTQ checkpoints: packing as gptqmodel unpacks, and reading back.

    qweight  int32 [in·bits/32, out], the integers packed along the inputs
    qzeros   int32 [G, out·bits/32], zero points packed along the outputs; "gptq" (v1) stores them less one
    scales   fp16 [G, out]
    g_idx    int32 [in], the group of each input

Symmetric weights are written as v1, which every reader knows. Asymmetric ones are written as v2: v1 cannot hold a zero
point of 0 (readers add the one back to whole words, so that 0 − 1 would carry into the neighbour).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from runner.model.checkpoint.formats.bit_packing import pack_rows, unpack_rows
from runner.model.checkpoint.formats.quantized import Quantized
from runner.model.checkpoint.formats.rules import Scheme


def pack(module: str, weight: Quantized, version: int) -> dict[str, torch.Tensor]:
    scale, zero = weight.scale, weight.zero_point
    if weight.strategy == "tensor":  # GPTQ knows no scale of a whole tensor: every row gets it
        scale = scale.expand(weight.out_features, 1)
        zero = zero if zero is None else zero.expand(weight.out_features, 1)
    if zero is None:
        zero = torch.full(scale.shape, 2 ** (weight.bits - 1), dtype=torch.uint8)
    if version == 1:
        if not weight.symmetric:
            raise ValueError("asymmetric weights are stored in version 2")
        zero = zero - 1
    columns = torch.arange(weight.in_features, dtype=torch.int32)
    return {
        f"{module}.g_idx": columns // weight.group_size,
        f"{module}.qweight": pack_rows(weight.integers, weight.bits).t().contiguous(),
        f"{module}.qzeros": pack_rows(zero.t().contiguous(), weight.bits),
        f"{module}.scales": scale.t().to(torch.float16).contiguous(),
    }


def dequantize(module: str, scheme: Scheme, version: int, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """The weight [out, in] in the dtype of the scales, any order of groups (`g_idx`) included."""
    scales = read(f"{module}.scales")
    packed = read(f"{module}.qweight")
    columns = packed.shape[0] * 32 // scheme.bits
    zeros = unpack_rows(read(f"{module}.qzeros"), scheme.bits, scales.shape[1]).to(torch.int16)
    if version == 1:
        zeros = (zeros + 1) & (2**scheme.bits - 1)
    groups = read(f"{module}.g_idx").long()
    weight = unpack_rows(packed.t(), scheme.bits, columns)[:, : len(groups)].to(scales.dtype)
    weight.sub_(zeros.t().to(scales.dtype)[:, groups])
    return weight.mul_(scales.t()[:, groups])


def unpack(module: str, scheme: Scheme, version: int, read: Callable[[str], torch.Tensor]) -> Quantized:
    """The inverse of `pack`; ValueError where the groups are not in the order of the columns."""
    scales = read(f"{module}.scales")
    groups = read(f"{module}.g_idx").long()
    columns = len(groups)
    size = scheme.columns(columns)
    if not torch.equal(groups, torch.arange(columns) // size):
        raise ValueError("its groups are not in the order of its columns (`g_idx`)")
    zeros = unpack_rows(read(f"{module}.qzeros"), scheme.bits, scales.shape[1]).to(torch.int16)
    if version == 1:
        zeros = (zeros + 1) & (2**scheme.bits - 1)
    packed = read(f"{module}.qweight")
    integers = unpack_rows(packed.t(), scheme.bits, packed.shape[0] * 32 // scheme.bits)[:, :columns].contiguous()
    zero = None if scheme.symmetric else zeros.t().to(torch.uint8).contiguous()
    return Quantized(integers, scales.t().contiguous(), zero, scheme.bits, size, scheme.strategy)
