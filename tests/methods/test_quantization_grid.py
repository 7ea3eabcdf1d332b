"""Grids: their ranges, how a search betters them, what is storable, and degenerate groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.methods import weight_parts
from runner.methods.quantization_grid import make_grid, quantize_rtn, round_and_measure, round_to_grid
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Numbers
from tests.methods.naive import levels_of


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator).exp() + 0.1


def naive_range(values: list[float], bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[float, int]:
    """The min–max scale and zero point of one group, one number at a time."""
    top = 2**bits - 1
    if symmetric:
        scale, zero = 2 * max(abs(v) for v in values) / top, 2 ** (bits - 1)
    else:
        low, high = min(0.0, *values), max(0.0, *values)
        scale = (high - low) / top
        zero = round(-low / scale) if scale else 0
    return float(torch.tensor(scale or 1.0).to(dtype)), zero


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 4), (3, 8), (4, 5), (8, None)])
def test_minmax_is_the_linear_map_of_each_group(
    bits: int, group_size: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    weight = random(3, 16)  # a group_size of 5 leaves a last group of one column
    weight[1] = weight[1].abs()  # zero stays inside the range of a row without negative weights
    quantized = quantize_rtn(weight, levels_of(bits, group_size, symmetric, scale_dtype=dtype))
    size = group_size or 16
    assert quantized.scale.dtype is dtype
    assert quantized.strategy == ("group" if group_size else "channel")
    for r in range(3):
        for g in range(math.ceil(16 / size)):
            columns = range(g * size, min(16, g * size + size))
            scale, zero = naive_range([float(weight[r, j]) for j in columns], bits, symmetric, dtype)
            assert float(quantized.scale[r, g]) == scale
            assert quantized.symmetric or int(quantized.zero_point[r, g]) == zero  # type: ignore[index]
            for j in columns:
                expected = min(max(round(float(weight[r, j] / torch.tensor(scale))) + zero, 0), 2**bits - 1)
                assert int(quantized.integers[r, j]) == expected


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_grid_for_a_tensor(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(6, 10)
    scheme = levels_of(8, symmetric=symmetric, per_tensor=True)
    whole = quantize_rtn(weight, scheme)
    assert whole.strategy == "tensor"
    assert whole.scale.shape == (1, 1)
    scale, _ = naive_range(weight.flatten().tolist(), 8, symmetric, torch.bfloat16)
    assert float(whole.scale) == scale
    searched = quantize_rtn(weight, levels_of(3, symmetric=symmetric, per_tensor=True), "mse")
    monkeypatch.setattr(weight_parts, "CHUNK", 20)
    assert torch.equal(quantize_rtn(weight, scheme).integers, whole.integers)
    again = quantize_rtn(weight, levels_of(3, symmetric=symmetric, per_tensor=True), "mse")
    assert torch.equal(again.scale, searched.scale)


@pytest.mark.parametrize("method", ["minmax", "mse", "weighted_mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_chunks_of_rows_change_nothing(method: str, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, importance = random(9, 24), torch.rand(24)
    scheme = levels_of(4, 8, symmetric)
    whole = make_grid(weight, scheme, method, importance)
    monkeypatch.setattr(weight_parts, "CHUNK", 50)
    parts = make_grid(weight, scheme, method, importance)
    assert torch.equal(whole.scale, parts.scale)
    assert torch.equal(whole.zeros(), parts.zeros())


def squared_error(weight: torch.Tensor, scheme: Levels, method: str, costs: torch.Tensor) -> torch.Tensor:
    """Of each group, in float64, of what is stored."""
    quantized = round_to_grid(weight, make_grid(weight, scheme, method, costs))
    zero = 2 ** (scheme.numbers.bits - 1) if quantized.zero_point is None else quantized.zero_point.double()[..., None]
    size = scheme.numbers.columns(weight.shape[1])
    q = quantized.integers.double().view(weight.shape[0], -1, size)
    left = weight.double().view_as(q) - quantized.scale.double()[..., None] * (q - zero)
    return (left.square() * costs.double().view(-1, size)).sum(2)


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from([2, 3, 4, 8]), symmetric=st.booleans(), seed=st.integers(0, 99))
def test_a_search_is_never_worse_in_any_group_by_its_own_measure(bits: int, symmetric: bool, seed: int) -> None:
    weight = random(5, 32, seed)
    importance = torch.rand(32, generator=torch.Generator().manual_seed(seed)).square()
    scheme = levels_of(bits, 16, symmetric)
    plain = torch.ones(32)
    slack = 1.0001
    assert bool(
        (squared_error(weight, scheme, "mse", plain) <= slack * squared_error(weight, scheme, "minmax", plain)).all()
    )
    weighted = squared_error(weight, scheme, "weighted_mse", importance)
    assert bool((weighted <= 1.001 * squared_error(weight, scheme, "minmax", importance)).all())


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.55), (3, 0.75), (4, 0.9)])
def test_a_search_finds_what_a_fine_one_finds(bits: int, gain: float) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    plain = torch.ones(128)
    found = squared_error(weight, levels_of(bits, 128), "mse", plain).sum()
    whole = squared_error(weight, levels_of(bits, 128), "minmax", plain).sum()
    top = 2**bits - 1
    best = torch.full((64,), torch.inf, dtype=torch.float64)
    for step in range(400):
        scale = (weight.abs().amax(1) * 2 / top * (1 - 0.002 * step)).bfloat16().double()[:, None]
        if step == 400 or float(scale.min()) <= 0:
            break
        q = (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        best = torch.minimum(best, (weight - scale * q).square().sum(1))
    assert float(found) <= 1.005 * float(best.sum())
    assert float(found) <= gain * float(whole)


def test_importance_moves_the_range_to_the_columns_that_matter() -> None:
    weight = torch.linspace(-1, 1, 16)[None] * 0.3
    weight[0, 0] = -1.0
    outlier_matters = torch.ones(16)
    outlier_matters[0] = 1e4
    never = torch.ones(16)
    never[0] = 0.0
    wide = make_grid(weight, levels_of(3), "weighted_mse", outlier_matters)
    narrow = make_grid(weight, levels_of(3), "weighted_mse", never)
    assert float(narrow.scale) < 0.6 * float(wide.scale)


def test_importance_of_zero_everywhere_is_plain_error() -> None:
    weight = random(3, 16)
    plain = make_grid(weight, levels_of(4, 8), "mse")
    unfed = make_grid(weight, levels_of(4, 8), "weighted_mse", torch.zeros(16))
    assert torch.equal(plain.scale, unfed.scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-9, 1e6, 1e30])
def test_any_size_of_weights_gives_finite_numbers(
    size: float, method: str, symmetric: bool, dtype: torch.dtype
) -> None:
    weight = torch.tensor([[1.0, -1.0, 0.5, 0.25]]) * size
    quantized = quantize_rtn(weight, levels_of(4, 2, symmetric, scale_dtype=dtype), method)
    back = quantized.dequantize(torch.float32)
    assert bool(torch.isfinite(quantized.scale).all())
    assert bool((quantized.scale > 0).all())
    assert bool(torch.isfinite(back).all())
    if size == 0:
        assert bool((back == 0).all())
    if dtype is torch.bfloat16 and size >= 1e-9 and method == "mse":
        assert float((back - weight).abs().max()) <= 0.1 * size


def test_zero_weights_stay_zero() -> None:
    weight = random(4, 32)
    weight[:, ::3] = 0
    for symmetric in (True, False):
        for method in ("minmax", "mse"):
            back = quantize_rtn(weight, levels_of(3, 16, symmetric), method).dequantize(torch.float32)
            assert bool((back[:, ::3] == 0).all())


def test_storable_scales() -> None:
    scale = torch.tensor([0.0, 1e-45, 0.1, 1e6])
    half, wide = levels_of(4, scale_dtype=torch.float16), levels_of(4, scale_dtype=torch.bfloat16)
    assert half.storable(scale).tolist() == [2.0**-24, 2.0**-24, float(torch.tensor(0.1).half()), 4094.0]
    assert wide.storable(scale).tolist() == [
        2.0**-126,
        2.0**-126,
        float(torch.tensor(0.1).bfloat16()),
        999424.0,
    ]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^method must be one of minmax, mse, weighted_mse; got 'best'$"):
        make_grid(random(2, 4), levels_of(4), "best")
    with pytest.raises(ValueError, match=r"^weighted_mse needs the importance of the columns$"):
        make_grid(random(2, 4), levels_of(4), "weighted_mse")


FLOATS = [
    Levels(Numbers("float8_e4m3", "channel")), Levels(Numbers("float8_e4m3", "tensor")),
    Levels(Numbers("float8_e4m3", (3, 5)), torch.float32), Levels(Numbers("float4_e2m1", 4), torch.float32),
]  # fmt: skip


@pytest.mark.parametrize("levels", FLOATS, ids=lambda levels: levels.numbers.describe())
def test_a_full_range_of_floats_ends_at_their_largest_level(levels: Levels) -> None:
    weight = random(7, 14)  # neither 3 × 5 blocks nor groups of 4 fit evenly
    quantized = quantize_rtn(weight, levels)
    largest = 448.0 if levels.numbers.element == "float8_e4m3" else 6.0
    rows, columns = {"channel": (1, 14), "tensor": (7, 14), "block": (3, 5), "group": (1, 4)}[levels.numbers.strategy]
    for r in range(0, 7, rows):
        for c in range(0, 14, columns):
            part = weight[r : r + rows, c : c + columns]
            scale = (part.abs().max() / largest).to(levels.scale_dtype)
            assert quantized.scale[r // rows, c // columns] == scale
            back = quantized.dequantize(torch.float32)[r : r + rows, c : c + columns]
            steps = levels.nearest_(part / scale.float(), torch.zeros(1))
            assert torch.allclose(back, steps * scale.float(), rtol=2**-7)


@pytest.mark.parametrize("levels", FLOATS, ids=lambda levels: levels.numbers.describe())
def test_a_search_never_loses_more_than_the_full_range_of_floats(levels: Levels) -> None:
    weight = random(9, 20, seed=4)
    costs = torch.rand(20, generator=torch.Generator().manual_seed(1))
    lost = {
        method: (round_to_grid(weight, make_grid(weight, levels, method, costs)).dequantize(torch.float32) - weight)
        .square().mul(costs).sum()
        for method in ("minmax", "weighted_mse")
    }  # fmt: skip
    assert lost["weighted_mse"] <= lost["minmax"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("numbers", [
    Numbers("int4", 32), Numbers("int8", "channel", symmetric=False), Numbers("int3", "tensor"),
    Numbers("float8_e4m3", "channel"), Numbers("float8_e4m3", (16, 32)), Numbers("float4_e2m1", 16, "float8_e4m3"),
    Numbers("float4_e2m1", 32, "float8_e8m0"),
], ids=Numbers.describe)  # fmt: skip
def test_the_error_of_rounding_is_that_of_what_readers_compute(
    numbers: Numbers, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_parts, "CHUNK", 300)  # several chunks of rows
    weight = random(32, 96).to(dtype)
    weight[3] = 0
    scales = {"float8_e4m3": torch.float8_e4m3fn, "float8_e8m0": torch.float8_e8m0fnu}
    grid = make_grid(weight, Levels(numbers, scales.get(numbers.scale, dtype)), "minmax")
    quantized, error = round_and_measure(weight, grid, dtype)
    assert torch.equal(quantized.codes, round_to_grid(weight.float(), grid).codes)
    lost = quantized.dequantize(dtype).double() - weight.double()
    assert error == pytest.approx(float(lost.square().sum() / weight.double().square().sum()), rel=1e-6)


def test_codes_of_eight_bit_floats_are_their_nearest_levels() -> None:
    """At every border between two levels, beyond the largest, and for zeros of either sign."""
    levels = Levels(Numbers("float8_e4m3", "channel"), torch.float32)
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    borders = (every[1:] + every[:-1]) / 2
    values = torch.cat([every, borders, borders.nextafter(borders + 1), torch.tensor([449.0, 1e30]), random(64, 64)[0]])
    values = torch.cat([values, -values])
    codes, steps = levels.round_to_steps_(values.clone(), torch.zeros(()))
    assert torch.equal(codes.view(torch.float8_e4m3fn).float(), steps)
    assert torch.equal(torch.signbit(codes.view(torch.float8_e4m3fn).float()), torch.signbit(values))
    exact = (values.double()[:, None].clamp(-448, 448) - torch.cat([every, -every]).double()).abs().amin(1)
    assert torch.equal((steps.double() - values.double().clamp(-448, 448)).abs(), exact)
