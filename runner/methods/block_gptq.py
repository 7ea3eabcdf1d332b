"""GPTQ on blocks of integers whose scales and minima are found: `block_quantization` chooses them, `gptq` the integers.

A weight is s · q + m there, s and m those of its part of a block. GPTQ sees errors alone, so that it solves for q on
the grid s · q with w − m as the weight.
"""

from __future__ import annotations

import torch

from runner.methods.block_quantization import BlockFormat, Rounded, steps
from runner.methods.gptq import Factor, quantize_weight
from runner.methods.quantization_grid import Grid
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import integers

_ENDLESS = 1e30  # a step in the place of 0, of which only 0 lies in reach


def compensated(weight: torch.Tensor, found: Rounded, format: BlockFormat, factor: Factor) -> Rounded:
    """Return `found`, a rounding of `weight` [rows, columns], with integers by GPTQ. Not for codebooks."""
    if format.codebook:
        raise ValueError("levels of a table are not evenly spaced")
    scale, minimum = steps(found, format)
    size = format.size // format.parts
    numbers = integers((format.high - format.low).bit_length(), size, not format.minimum).weights
    grid = Grid(
        Levels(numbers, torch.float32), torch.where(scale == 0, _ENDLESS, scale),
        torch.zeros_like(scale) if format.minimum else None,
    )  # fmt: skip
    target = weight.float() if minimum is None else weight.float() - minimum.repeat_interleave(size, dim=1)
    codes = quantize_weight(target, factor, grid).quantized.codes.to(torch.int16)
    return found._replace(q=codes if format.minimum else codes - grid.levels.middle)
