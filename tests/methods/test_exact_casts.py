"""Casts that lose nothing, over all codes and exponents of MXFP4, and what they cannot cast."""

from __future__ import annotations

import pytest
import torch

from runner.methods.exact_casts import exact_grid, first_inexact
from runner.methods.quantization_grid import round_to_grid
from runner.methods.quantization_scheme import stored_levels
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.quantized import E2M1

FORMATS = {
    "nvfp4a16": "nvfp4-pack-quantized", "mxfp4a16": "mxfp4-pack-quantized", "mxfp8a16": "mxfp8-quantized"
}  # fmt: skip


def blocks(rows: int, columns: int, span: int, seed: int = 0, smallest: int = -12) -> torch.Tensor:
    """MXFP4: for each 32 columns random levels times 2^k, k from `smallest` on, the largest of them in the first."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor([*E2M1, *(-each for each in E2M1)])
    values = levels[torch.randint(16, (rows, columns), generator=generator)].view(rows, -1, 32)
    exponents = torch.randint(smallest, smallest + span, values.shape[:2], generator=generator)
    exponents[0, 0] = smallest + span - 1
    values[0, 0, 0] = 6.0
    values[-1, -1] = 0
    return torch.ldexp(values, exponents[..., None]).view(rows, columns).bfloat16()


@pytest.mark.parametrize("scheme", sorted(FORMATS))
def test_a_million_weights_of_mxfp4_keep_every_bit(scheme: str) -> None:
    weight = blocks(1024, 1024, 16)
    levels = stored_levels(PRESETS[scheme], FORMATS[scheme], torch.bfloat16)
    quantized = round_to_grid(weight, exact_grid(weight, levels))
    assert first_inexact(weight, quantized) is None
    assert torch.equal(quantized.dequantize(torch.bfloat16), weight)


def test_modules_that_share_a_scale_do() -> None:
    one, other = blocks(4, 64, 6), blocks(4, 64, 4, seed=1)
    levels = stored_levels(PRESETS["nvfp4a16"], FORMATS["nvfp4a16"], torch.bfloat16)
    largest = torch.stack([one.abs().amax(), other.abs().amax()]).amax()
    grids = [exact_grid(each, levels, largest) for each in (one, other)]
    assert len({float(each.levels.global_scale or 0) for each in grids}) == 1
    for weight, grid in zip((one, other), grids, strict=True):
        assert first_inexact(weight, round_to_grid(weight, grid)) is None


def test_zeros_are_exact() -> None:
    levels = stored_levels(PRESETS["nvfp4a16"], FORMATS["nvfp4a16"], torch.bfloat16)
    weight = torch.zeros(2, 32, dtype=torch.bfloat16)
    assert first_inexact(weight, round_to_grid(weight, exact_grid(weight, levels))) is None


def test_the_first_weight_that_would_change_is_named() -> None:
    levels = stored_levels(PRESETS["nvfp4a16"], FORMATS["nvfp4a16"], torch.bfloat16)
    weight = blocks(8, 64, 4)
    weight[5, 32:48] = 4.0
    weight[5, 40] = 5.0  # no level
    weight[6, :16] = 7.0
    assert first_inexact(weight, round_to_grid(weight, exact_grid(weight, levels))) == (5, 40)


def test_scales_that_lie_too_far_apart_are_not_exact() -> None:
    """E4M3 holds the powers of two from 2⁻⁹ to 2⁸."""
    weight = torch.tensor([[6.0] * 16 + [6.0 * 2.0**-18] * 15 + [2.0**-18]], dtype=torch.bfloat16)
    levels = stored_levels(PRESETS["nvfp4a16"], FORMATS["nvfp4a16"], torch.bfloat16)
    assert first_inexact(weight, round_to_grid(weight, exact_grid(weight, levels))) is None  # as 3 and 1/2 times 2⁻¹⁷
    weight[:, 16:] /= 2
    assert first_inexact(weight, round_to_grid(weight, exact_grid(weight, levels))) == (0, 31)
