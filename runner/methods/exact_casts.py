"""Casts of weights that lose nothing: from floats with scales that are powers of two to smaller groups of such floats.

MXFP4 → NVFP4: the 32 weights of a block are E2M1 times 2^k, so both their halves of 16 are. Let 2^x be the power of two
below the largest |w| of a half; with the scale 2^(x − 2) that weight gets the level 4 or 6, and any other that is E2M1
times a larger power of two gets a level too, since twice a level up to 3 is a level. So no other scale need be tried.
Scales of two levels are exact where those of a tensor lie within the 2^17 that E4M3 spans. The same holds of MXFP8.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from runner.methods.quantization_grid import GREATEST_GLOBAL_SCALE, Grid
from runner.model.checkpoint.quantization import scale_types
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.quantized import Quantized

_LARGEST_E4M3_POWER = 2.0**8


def exact_grid(weight: torch.Tensor, levels: Levels, largest: torch.Tensor | None = None) -> Grid:
    """Return the grid of `weight` [out, in] that is exact where one with powers of two as scales is.

    largest  the largest |w| of the tensors that share one global scale; by default that of this one
    """
    size = levels.numbers.columns(weight.shape[1])
    reach = math.floor(math.log2(levels.full_range))  # the exponent of the largest level
    if levels.numbers.two_level:
        top = _below(weight.abs().amax().float() if largest is None else largest.float()) * 2.0**-reach
        shared = torch.where(top > 0, _LARGEST_E4M3_POWER / top, 1.0).clamp(max=GREATEST_GLOBAL_SCALE)
        levels = replace(levels, global_scale=shared.reshape(1))
    own = _below(weight.float().unflatten(1, (-1, size)).abs().amax(2)) * 2.0**-reach
    return Grid(levels, levels.storable(torch.where(own > 0, own, 1.0)), None)


def first_inexact(weight: torch.Tensor, quantized: Quantized) -> tuple[int, int] | None:
    """Return the row and the column of the first weight that readers of `quantized` would get otherwise; else None."""
    wrong = (quantized.dequantize(torch.float32) != weight.float()).nonzero()
    return None if not len(wrong) else (int(wrong[0, 0]), int(wrong[0, 1]))


def _below(values: torch.Tensor) -> torch.Tensor:
    """The power of two that is at most each of the values."""
    return scale_types.power_of_two(values, 2.0)
