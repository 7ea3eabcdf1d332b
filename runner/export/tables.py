"""Round the token embedding and the output head to integers.

A table that multiplies, the head or an embedding tied to it, is rounded by GPTQ where the second moment of the head's
inputs is known; one from which rows are gathered alone, to nearest.

In a graph the gathering of rows and MatMulNBits read the same bytes: fields of 4 or 8 bits, blocks of columns that are
powers of two, and a zero point in the middle, which is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from runner.export import integers
from runner.export.integers import Blocks
from runner.export.table_layouts import block_size
from runner.methods.gptq import ROWS, Factor, factorize, quantize_weight
from runner.methods.quantization_grid import make_grid, quantize_rtn
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import integers as scheme

DAMPENING = 0.01  # of the mean diagonal


@dataclass(frozen=True)
class Calibration:
    """What the table that multiplies is rounded by.

    factor  of the second moment of the head's inputs
    watch   is called with the number of rows that are done, and of all; it may raise
    """

    factor: Factor
    watch: Callable[[int, int], None]

    def pieces(self, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the rows that are solved at once, and their values in float32."""
        for begin in range(0, len(weight), ROWS):
            rows = slice(begin, min(begin + ROWS, len(weight)))
            yield rows, weight[rows].float()
            self.watch(rows.stop, len(weight))


def calibration(moment: torch.Tensor, watch: Callable[[int, int], None]) -> Calibration:
    """Return the calibration by a second moment [in, in].

    Inputs that are always zero say nothing of the column that they meet: it is rounded to nearest, as its values are
    gathered where the table is the embedding, too.
    """
    factor = factorize(moment, dampening_fraction=DAMPENING, act_order=True)
    return Calibration(replace(factor, dead=torch.zeros_like(factor.dead)), watch)


def rounded(weight: torch.Tensor, bits: int, calibrated: Calibration | None = None) -> Blocks:
    """Round a table [V, H] on grids of least (weighed) squared error, with scales in float16."""
    size = block_size(weight.shape[1], bits)
    assert size is not None
    found = quantized(weight, Levels(scheme(bits, size, True).weights, torch.float16), calibrated)
    return integers.blocks(found, bits, size, torch.float16)


def quantized(weight: torch.Tensor, levels: Levels, calibrated: Calibration | None) -> Quantized:
    """Round a table [V, H] to symmetric `levels`: to nearest, or by GPTQ, some rows at a time."""
    if calibrated is None:
        return quantize_rtn(weight.float(), levels, "mse")
    importance = calibrated.factor.importance()
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales = []
    for rows, part in calibrated.pieces(weight):
        found = quantize_weight(part, calibrated.factor, make_grid(part, levels, "weighted_mse", importance)).quantized
        codes[rows] = found.codes
        scales.append(found.scale)
    return Quantized(codes, torch.cat(scales), None, found.numbers)
