"""Scales that are stored in one byte.

float8_e4m3  the scales of NVFP4's groups, less one of the whole tensor; the smallest is 2⁻⁹, the largest 448
float8_e8m0  the powers of two of the OCP's microscaling formats, 2⁻¹²⁷ to 2¹²⁷; files hold their exponents as uint8
"""

from __future__ import annotations

import torch

E4M3 = torch.float8_e4m3fn
E8M0 = torch.float8_e8m0fnu
BY_NAME = {"float8_e4m3": E4M3, "float8_e8m0": E8M0}
FIRST = {E4M3: 1, E8M0: 0}  # the codes of scales: neither zero nor NaN
LAST = {E4M3: 126, E8M0: 254}
NEIGHBOURS = {  # codes that lie next to that of a scale: all from half of it to 1.7 times it, in order of distance
    E4M3: (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6, -7, -8),
    E8M0: (0, -1, 1),
}
_EXPONENT = 0x7F800000


def in_one_byte(dtype: torch.dtype) -> bool:
    return dtype in FIRST


def codes(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bits of float32 scales, uint8: the nearest E4M3, or the power of two below; clipped to what there is."""
    if dtype is E4M3:
        found = scale.clamp(2.0**-9, 448.0).to(E4M3).view(torch.uint8)
    else:
        found = ((scale.contiguous().view(torch.int32) & _EXPONENT) >> 23).clamp_(max=LAST[E8M0]).to(torch.uint8)
    return found


def moved(codes: torch.Tensor, by: int, dtype: torch.dtype) -> torch.Tensor:
    """The scales that lie `by` codes further up, clipped to what there is; uint8."""
    return (codes.to(torch.int16) + by).clamp_(FIRST[dtype], LAST[dtype]).to(torch.uint8)


def power_of_two(values: torch.Tensor, up_from: float) -> torch.Tensor:
    """The power of two 2^k of float32 values in [2^k, 2^(k+1)), or the next one from `up_from` · 2^k on."""
    push = round((2 - up_from) * 2**23)
    return ((values.contiguous().view(torch.int32) + push) & _EXPONENT).view(torch.float32)
