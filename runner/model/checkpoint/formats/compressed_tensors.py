"""compressed-tensors "pack-quantized": packing as its reader unpacks, and reading back.

weight_packed      int32 [out, ⌈in·bits/32⌉], the stored integers 0..2^bits − 1 along the columns
weight_scale       [out, G]; [1] for a whole tensor
weight_shape       int64 [2]
weight_zero_point  asymmetric only: int32 [⌈out·bits/32⌉, G] packed along the rows; int8 [1], less 2^(bits−1), for
                   a whole tensor
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from runner.model.checkpoint.formats.bit_packing import pack_rows, unpack_rows
from runner.model.checkpoint.formats.quantized import Quantized
from runner.model.checkpoint.formats.rules import Scheme


def pack(module: str, weight: Quantized) -> dict[str, torch.Tensor]:
    whole = weight.strategy == "tensor"
    tensors = {
        f"{module}.weight_packed": pack_rows(weight.integers, weight.bits),
        f"{module}.weight_scale": weight.scale.reshape(1) if whole else weight.scale.contiguous(),
        f"{module}.weight_shape": torch.tensor([weight.out_features, weight.in_features], dtype=torch.int64),
    }
    if weight.zero_point is not None:
        if whole:
            zero = (weight.zero_point.to(torch.int16) - 2 ** (weight.bits - 1)).to(torch.int8).reshape(1)
        else:
            zero = pack_rows(weight.zero_point.t().contiguous(), weight.bits).t().contiguous()
        tensors[f"{module}.weight_zero_point"] = zero
    return tensors


def unpack(module: str, scheme: Scheme, read: Callable[[str], torch.Tensor]) -> Quantized:
    """The inverse of `pack`; `read` gives a tensor by name."""
    rows, columns = (int(size) for size in read(f"{module}.weight_shape"))
    scale = read(f"{module}.weight_scale")
    whole = scheme.strategy == "tensor"
    zero = None
    if not scheme.symmetric:
        stored = read(f"{module}.weight_zero_point")
        if whole:
            zero = (stored.to(torch.int16) + 2 ** (scheme.bits - 1)).to(torch.uint8).reshape(1, 1)
        else:
            zero = unpack_rows(stored.t(), scheme.bits, rows).t().contiguous()
    return Quantized(
        integers=unpack_rows(read(f"{module}.weight_packed"), scheme.bits, columns),
        scale=scale.reshape(1, 1) if whole else scale.reshape(rows, -1),
        zero_point=zero,
        bits=scheme.bits,
        group_size=scheme.columns(columns),
        strategy=scheme.strategy,
    )


def unpack_plain(module: str, scheme: Scheme, read: Callable[[str], torch.Tensor]) -> Quantized:
    """An `int-quantized` weight: int8 integers around zero under `weight`, scale and zero point unpacked beside it."""
    stored = read(f"{module}.weight")
    rows, columns = stored.shape
    middle = 2 ** (scheme.bits - 1)
    groups = 1 if isinstance(scheme.group_size, str) else scheme.groups(columns)
    shape = (1, 1) if scheme.strategy == "tensor" else (rows, groups)
    zero = None
    if not scheme.symmetric:
        zero = (read(f"{module}.weight_zero_point").to(torch.int16) + middle).to(torch.uint8).reshape(shape)
    return Quantized(
        integers=(stored.to(torch.int16) + middle).to(torch.uint8),
        scale=read(f"{module}.weight_scale").reshape(shape),
        zero_point=zero,
        bits=scheme.bits,
        group_size=scheme.columns(columns),
        strategy=scheme.strategy,
    )
