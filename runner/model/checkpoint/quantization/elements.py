"""Elements: which levels a number may take. A grid asks for the nearest one, whatever the element is.

int2 … int8   0 … 2^b − 1, less a zero point
float8_e4m3   sign, 4 bits of exponent, 3 of mantissa; largest 448; no infinities (OCP 8-bit floating point, 2023)
float4_e2m1   0, ½, 1, 1½, 2, 3, 4, 6 and their negatives (OCP microscaling formats, 2023)
nf4, fp4, log2   the tables of `codebooks`

Floats are rounded to nearest, ties to even, and saturate. Of two levels of a table at one distance the lower is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch

from runner.model.checkpoint.quantization import scale_types
from runner.model.checkpoint.quantization.codebooks import CODEBOOKS
from runner.model.checkpoint.quantization.scheme import Numbers

LARGEST = {"float8_e4m3": 448.0, "float4_e2m1": 6.0, **{name: table.largest for name, table in CODEBOOKS.items()}}
SMALLEST_EXPONENT = {"float8_e4m3": -6, "float4_e2m1": 0}  # of normal numbers: below, the spacing stays as it is
MANTISSA_BITS = {"float8_e4m3": 3, "float4_e2m1": 1}
_EXPONENT = 0x7F800000  # the bits of a float32 that hold its exponent
_E2M1_CODES = (0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7)  # by twice the absolute value


@dataclass(frozen=True)
class Levels:
    """The levels of `numbers`, and the dtype in which their scales are stored.

    global_scale  float32 [1]: what stored scales of two levels are divided by; None for one level
    """

    numbers: Numbers
    scale_dtype: torch.dtype = torch.bfloat16
    global_scale: torch.Tensor | None = None

    @property
    def symmetric(self) -> bool:
        return self.numbers.symmetric

    @property
    def per_tensor(self) -> bool:
        return self.numbers.layout == "tensor"

    @property
    def middle(self) -> int:
        """The zero point of symmetric numbers, as they are stored."""
        stored = self.numbers.stored
        return int(2 ** (stored.bits - 1)) if stored.is_integer else 0

    @property
    def reach(self) -> float:
        """A bound on the size of a level less its zero point."""
        return float(2**self.numbers.bits) if self.numbers.is_integer else LARGEST[self.numbers.element]

    @property
    def read_dtype(self) -> torch.dtype:
        """The type in which readers compute weights, as `Quantized.dtype`."""
        return torch.bfloat16 if scale_types.in_one_byte(self.scale_dtype) else self.scale_dtype

    @property
    def full_range(self) -> float:
        """What the largest value is in steps of the scale that just covers symmetric numbers."""
        return (2**self.numbers.bits - 1) / 2 if self.numbers.is_integer else LARGEST[self.numbers.element]

    def grouped(self, size: int) -> Levels:
        """The same levels with scales for groups of `size` columns."""
        return replace(self, numbers=replace(self.numbers, layout=size))

    def full_scale(self, largest: torch.Tensor) -> torch.Tensor:
        """The scale at which symmetric numbers just cover −largest … largest, float32.

        Of powers of two it is the one that compressed-tensors, vLLM and the OCP's reference code choose: that of
        `largest`, rounded up from 1.75 of it on, over that of the largest level.
        """
        if self.scale_dtype is scale_types.E8M0:
            return scale_types.power_of_two(largest, 1.75) * 2.0 ** -math.floor(math.log2(self.full_range))
        return largest.mul(1 / self.full_range) if self.numbers.is_integer else largest.div(self.full_range)

    def scale_codes(self, scale: torch.Tensor) -> torch.Tensor:
        """uint8: the bits of scales that are stored in one byte."""
        local = scale if self.global_scale is None else scale * self.global_scale
        return scale_types.codes(local, self.scale_dtype)

    def scales_of_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """The scales that a reader computes from such bits, float32."""
        local = codes.view(self.scale_dtype).float()
        return local if self.global_scale is None else local / self.global_scale

    def storable(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales as they will be read: rounded to `scale_dtype`, in float32, never zero, finite times any level.

        The smallest is the smallest normal number of bf16, or the smallest subnormal of fp16 (normal in float32), so
        that a machine that flushes subnormals still reads it. Weights beyond the largest grid are clipped. Scales in
        one byte are clipped to those that it holds.
        """
        if scale_types.in_one_byte(self.scale_dtype):
            return self.scales_of_codes(self.scale_codes(scale))
        dtype = self.scale_dtype
        least = 2.0**-24 if dtype is torch.float16 else torch.finfo(dtype).smallest_normal
        return scale.clamp(least, torch.finfo(dtype).max / self.reach).to(dtype).float()

    def nearest_(self, values: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Weights over their scale to the nearest level less its zero point, in place. `zero` broadcasts.

        A negative number that becomes zero may lose its sign.
        """
        if self.numbers.is_codebook:
            table = codebook(self.numbers.element, values.device)
            return values.copy_(table.levels[torch.bucketize(values, table.borders)])
        if not self.numbers.is_integer:
            return nearest_float_(values, self.numbers.element)
        top = 2**self.numbers.bits - 1
        if self.symmetric:  # one zero for all: bounds that are tensors take ten times as long
            return values.round_().clamp_(-self.middle, top - self.middle)
        return values.round_().add_(zero).clamp_(0, top).sub_(zero)

    def codes_(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """uint8 codes of what `nearest_` gave; `steps` may be changed."""
        if self.numbers.is_codebook:
            table = codebook(self.numbers.element, steps.device)
            return table.codes[torch.bucketize(steps, table.borders)]
        if self.numbers.element == "float8_e4m3":
            return steps.to(torch.float8_e4m3fn).view(torch.uint8)
        if self.numbers.element == "float4_e2m1":
            return codes_of_e2m1(steps)
        return steps.add_(zero).to(torch.uint8)

    def round_(self, values: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """uint8 codes of the nearest levels, with the sign of zeros where there is one; changes `values`."""
        if self.numbers.element == "float8_e4m3":
            largest = LARGEST["float8_e4m3"]
            return values.clamp_(-largest, largest).to(torch.float8_e4m3fn).view(torch.uint8)
        return self.round_to_steps_(values, zero)[0]

    def round_to_steps_(self, values: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes of `round_`, and the levels less their zero points, float32; changes `values`."""
        if self.numbers.is_integer:
            steps = self.nearest_(values, zero)
            return self.codes_(steps.clone(), zero), steps
        if self.numbers.element == "float8_e4m3":
            return self.round_(values, zero), self.nearest_(values, zero)
        if self.numbers.is_codebook:
            return self.codes_(values, zero), self.nearest_(values, zero)
        signs = torch.signbit(values)
        steps = self.nearest_(values, zero)
        return self.codes_(steps, zero).bitwise_or_(signs.to(torch.uint8).mul_(1 << (self.numbers.bits - 1))), steps

    def in_steps(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weights in steps of their scale; for tables by the reciprocal, as bitsandbytes computes them."""
        return values * scale.reciprocal() if self.numbers.is_codebook else values / scale


@dataclass(frozen=True)
class Table:
    """A codebook as tensors: `levels` from the lowest on, float32, the `borders` between them, and uint8 `codes`."""

    levels: torch.Tensor
    borders: torch.Tensor
    codes: torch.Tensor


@cache
def codebook(element: str, device: torch.device) -> Table:
    """Return the table of a codebook on a device."""
    levels = torch.tensor(CODEBOOKS[element].levels, device=device)
    codes = torch.tensor(CODEBOOKS[element].codes, dtype=torch.uint8, device=device)
    return Table(levels, (levels[:-1] + levels[1:]) / 2, codes)


def nearest_float_(values: torch.Tensor, element: str) -> torch.Tensor:
    """To the nearest level of a small float, ties to the even mantissa, saturated, in place.

    Levels near x lie 2^(e − m) apart, e the exponent of x and m the bits of a mantissa. Adding 1.5 · 2^(23 − m + e)
    makes that distance the last place of a float32, so that the addition itself rounds as wanted (and a conversion to
    8-bit floats and back takes ten times as long on a CPU).
    """
    if values.dtype is not torch.float32:
        return values.copy_(nearest_float_(values.float(), element))
    largest = LARGEST[element]
    values.clamp_(-largest, largest)
    shift = (values.view(torch.int32) & _EXPONENT).view(torch.float32)
    shift.clamp_(min=2.0 ** SMALLEST_EXPONENT[element]).mul_(1.5 * 2.0 ** (23 - MANTISSA_BITS[element]))
    return values.add_(shift).sub_(shift)


def codes_of_e2m1(values: torch.Tensor) -> torch.Tensor:
    """uint8: the place of |value| among the levels, and 8 for a sign."""
    table = torch.tensor(_E2M1_CODES, dtype=torch.uint8, device=values.device)
    places = table[(values.abs() * 2).long()]
    return places | (torch.signbit(values).to(torch.uint8) << 3)
