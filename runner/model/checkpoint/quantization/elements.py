"""Elements: which levels a number may take. A grid asks for the nearest one, whatever the element is.

int2 … int8   0 … 2^b − 1, less a zero point
float8_e4m3   sign, 4 bits of exponent, 3 of mantissa; largest 448; no infinities (OCP 8-bit floating point, 2023)
float4_e2m1   0, ½, 1, 1½, 2, 3, 4, 6 and their negatives (OCP microscaling formats, 2023)

Floats are rounded to nearest, ties to even, and saturate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from runner.model.checkpoint.quantization.quantized import E2M1
from runner.model.checkpoint.quantization.scheme import Numbers

LARGEST = {"float8_e4m3": 448.0, "float4_e2m1": 6.0}


@dataclass(frozen=True)
class Levels:
    """The levels of `numbers`, and the dtype in which their scales are stored."""

    numbers: Numbers
    scale_dtype: torch.dtype = torch.bfloat16

    @property
    def symmetric(self) -> bool:
        return self.numbers.symmetric

    @property
    def per_tensor(self) -> bool:
        return self.numbers.layout == "tensor"

    @property
    def middle(self) -> int:
        """The zero point of symmetric numbers."""
        return int(2 ** (self.numbers.bits - 1)) if self.numbers.is_integer else 0

    @property
    def reach(self) -> float:
        """A bound on the size of a level less its zero point."""
        return float(2**self.numbers.bits) if self.numbers.is_integer else LARGEST[self.numbers.element]

    @property
    def full_range(self) -> float:
        """What the largest value is in steps of the scale that just covers symmetric numbers."""
        return (2**self.numbers.bits - 1) / 2 if self.numbers.is_integer else LARGEST[self.numbers.element]

    def grouped(self, size: int) -> Levels:
        """The same levels with scales for groups of `size` columns."""
        return replace(self, numbers=replace(self.numbers, layout=size))

    def full_scale(self, largest: torch.Tensor) -> torch.Tensor:
        """The scale at which symmetric numbers just cover −largest … largest."""
        return largest.mul(1 / self.full_range) if self.numbers.is_integer else largest.div(self.full_range)

    def nearest_(self, values: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Weights over their scale, float32, to the nearest level less its zero point, in place. `zero` broadcasts."""
        if self.numbers.element == "float8_e4m3":
            return values.copy_(values.clamp_(-448, 448).to(torch.float8_e4m3fn))
        if self.numbers.element == "float4_e2m1":
            return nearest_e2m1_(values)
        top = 2**self.numbers.bits - 1
        if self.symmetric:  # one zero for all: bounds that are tensors take ten times as long
            return values.round_().clamp_(-self.middle, top - self.middle)
        return values.round_().add_(zero).clamp_(0, top).sub_(zero)

    def codes_(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """uint8 codes of what `nearest_` gave; `steps` may be changed."""
        if self.numbers.element == "float8_e4m3":
            return steps.to(torch.float8_e4m3fn).view(torch.uint8)
        if self.numbers.element == "float4_e2m1":
            return codes_of_e2m1(steps)
        return steps.add_(zero).to(torch.uint8)


def nearest_e2m1_(values: torch.Tensor) -> torch.Tensor:
    """To the nearest level of E2M1, ties to the even mantissa, in place; the sign of a zero stays."""
    size = values.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    size.div_(step).round_().mul_(step).clamp_(max=6)
    return values.copy_(torch.copysign(size, values))


def codes_of_e2m1(values: torch.Tensor) -> torch.Tensor:
    """uint8: the place of |value| among the levels, and 8 for a sign."""
    levels = torch.tensor(E2M1, device=values.device)
    places = torch.searchsorted(levels, values.abs().contiguous()).to(torch.uint8)
    return places | (torch.signbit(values).to(torch.uint8) << 3)
