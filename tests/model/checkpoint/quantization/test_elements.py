"""Levels of every element: the nearest one, against compressed-tensors and a search through all of them."""

from __future__ import annotations

import pytest
import torch

from runner.model.checkpoint.quantization.codebooks import CODEBOOKS
from runner.model.checkpoint.quantization.elements import Levels, codes_of_e2m1, nearest_float_
from runner.model.checkpoint.quantization.quantized import E2M1, Quantized
from runner.model.checkpoint.quantization.scheme import Numbers

E2M1_LEVELS = torch.tensor(sorted({*E2M1, *(-value for value in E2M1)}))
E4M3_LEVELS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
E4M3_LEVELS = E4M3_LEVELS[E4M3_LEVELS.isfinite()].unique()


def values(levels: torch.Tensor, count: int = 1_000_000) -> torch.Tensor:
    """Every level, every midpoint of two and its neighbours, numbers beyond the largest, and `count` random ones."""
    midpoints = (levels[1:] + levels[:-1]) / 2
    largest = float(levels.max())
    random = (torch.rand(count, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 1.2 * largest
    near = [midpoints.nextafter(torch.tensor(to)) for to in (torch.inf, -torch.inf)]
    return torch.cat([levels, midpoints, *near, torch.tensor([largest * 4, -largest * 4, -0.0]), random])


@pytest.mark.parametrize(("element", "levels"), [("float8_e4m3", E4M3_LEVELS), ("float4_e2m1", E2M1_LEVELS)])
def test_the_nearest_level_of_a_float(element: str, levels: torch.Tensor) -> None:
    given = values(levels, 50_000)
    found = Levels(Numbers(element, "channel")).nearest_(given.clone(), torch.zeros(1))
    distances = (given.clamp(levels.min(), levels.max())[:, None] - levels).abs().amin(1)
    assert torch.equal((given.clamp(levels.min(), levels.max()) - found).abs(), distances)


@pytest.mark.parametrize("element", CODEBOOKS)
def test_the_nearest_level_of_a_table(element: str) -> None:
    """Of two levels at one distance the lower, and codes whose values are those levels."""
    table, zero = CODEBOOKS[element], torch.tensor([128.0])
    levels = torch.tensor(table.levels)
    given = values(levels.unique(), 20_000)
    own = Levels(Numbers(element, "channel"))
    found = own.nearest_(given.clone(), zero)
    distances = (given[:, None].double() - levels.double()).abs()
    assert torch.allclose((given.double() - found.double()).abs(), distances.amin(1), atol=1e-7, rtol=0)
    assert torch.equal(found[: len(levels.unique())], levels.unique())
    middle = (levels[3] + levels[4]) / 2
    assert float(own.nearest_(middle.view(1).clone(), zero)) == float(levels[3])
    by_code = dict(zip(table.codes, table.levels, strict=True))
    codes = own.round_(given.clone(), zero)
    assert [by_code[code] for code in codes[:1000].tolist()] == pytest.approx(found[:1000].tolist())


def test_powers_of_two_are_stored_as_integers() -> None:
    """Every level of log2 is the integer that its code stands for, whatever reader unpacks it."""
    from runner.methods.quantization_grid import grid_of, quantize_rtn

    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    errors = []
    for grid in ("minmax", "mse"):
        packed = quantize_rtn(weight, Levels(Numbers("log2", 64)), grid)
        assert packed.numbers == Numbers("int8", 64)
        steps = packed.codes.int() - 128
        assert {abs(int(step)) for step in steps.unique()} <= {0, *(1 << exponent for exponent in range(7))}
        dense = packed.dequantize(torch.float32)
        assert torch.equal(dense, (steps * packed.scale.float().repeat_interleave(64, 1)).bfloat16().float())
        errors.append(float((dense - weight).square().mean()))
        again = grid_of(packed, Numbers("log2", 64)).levels
        assert again.numbers.element == "log2"
    assert errors[1] < errors[0] < 0.04


def test_e2m1_rounds_as_compressed_tensors_rounds_it() -> None:
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4

    given = values(E2M1_LEVELS)
    found = nearest_float_(given.clone(), "float4_e2m1")
    assert torch.equal(found, cast_to_fp4(given))
    pairs = found[: len(found) // 2 * 2].view(1, -1)
    codes = codes_of_e2m1(pairs)
    ours, theirs = codes[:, 0::2] | (codes[:, 1::2] << 4), pack_fp4_to_uint8(pairs)
    # A negative zero has two codes; theirs keeps no sign of it.
    differ = ours != theirs
    zeros = (pairs.view(-1, 2) == 0).any(1)
    assert not bool((differ.view(-1) & ~zeros).any())


def test_e4m3_rounds_as_compressed_tensors_rounds_it() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.quant_args import round_to_quantized_type_args

    given = values(E4M3_LEVELS)
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel")
    limits = torch.tensor(-448.0), torch.tensor(448.0)
    theirs = round_to_quantized_type_args(given, args, *limits)
    found = Levels(Numbers("float8_e4m3", "channel")).nearest_(given.clone(), torch.zeros(1))
    assert torch.equal(found, theirs.float())


@pytest.mark.parametrize("element", ["int2", "int5", "int8", "float8_e4m3", "float4_e2m1"])
def test_codes_stand_for_their_levels(element: str) -> None:
    numbers = Numbers(element, "channel")
    levels = Levels(numbers, torch.float32)
    steps = levels.nearest_(torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * 3, torch.zeros(8, 1))
    zero = torch.full((8, 1), float(levels.middle))
    weight = Quantized(levels.codes_(steps.clone(), zero), torch.ones(8, 1), None, numbers)
    assert torch.equal(weight.dequantize(torch.float32), steps)


def test_bytes_are_those_of_compressed_tensors_with_the_signs_of_zeros() -> None:
    """What is rounded to zero keeps its sign there; a negative zero itself loses it in E2M1."""
    from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4

    given = values(E4M3_LEVELS)
    eight = Levels(Numbers("float8_e4m3", "channel"))
    assert torch.equal(
        eight.round_(given.clone(), torch.zeros(1)),
        given.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8),
    )
    given = values(E2M1_LEVELS)
    given = given[(given != 0) | ~given.signbit()]
    given = given[: len(given) // 16 * 16].view(1, -1)
    codes = Levels(Numbers("float4_e2m1", "channel")).round_(given.clone(), torch.zeros(1))
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    assert torch.equal(packed, quantize_and_pack_fp4(given, torch.ones(1, given.shape[1] // 16)))
