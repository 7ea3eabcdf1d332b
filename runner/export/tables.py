"""Round the token embedding and the output head to integers, in one layout for gathering rows and for products.

The gathering of rows and MatMulNBits read the same bytes: fields of 4 or 8 bits, blocks of columns that
are powers of two, and a zero point in the middle, which is not stored.
"""

from __future__ import annotations

import torch

from runner.export import integers
from runner.export.integers import Blocks
from runner.export.table_layouts import block_size
from runner.methods.quantization_grid import quantize_rtn
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import integers as scheme


def rounded(weight: torch.Tensor, bits: int) -> Blocks:
    """Round a table [V, H] to nearest on grids of least squared error, with scales in float16."""
    size = block_size(weight.shape[1], bits)
    assert size is not None
    quantized = quantize_rtn(weight.float(), Levels(scheme(bits, size, True).weights, torch.float16), "mse")
    return integers.blocks(quantized, bits, size, torch.float16)
