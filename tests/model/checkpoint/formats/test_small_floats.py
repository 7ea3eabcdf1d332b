"""NVFP4 and the MX formats against compressed-tensors: its bytes for equal scales, its weights, its scales."""

from __future__ import annotations

import pytest
import torch

from runner.methods.quantization_grid import make_grid, quantize_rtn
from runner.methods.quantization_scheme import stored_levels, with_input_scale
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.reader import DTYPE_NAMES
from tests.model.checkpoint.formats.checkpoints import compressor, scheme_object

FORMATS = {
    "nvfp4": "nvfp4-pack-quantized", "nvfp4a16": "nvfp4-pack-quantized", "mxfp4": "mxfp4-pack-quantized",
    "mxfp4a16": "mxfp4-pack-quantized", "mxfp8": "mxfp8-quantized", "mxfp8a16": "mxfp8-quantized",
}  # fmt: skip


def random_weight(rows: int = 40, columns: int = 96) -> torch.Tensor:
    """Rows of very different sizes, a group of zeros, and numbers that become zero, of either sign."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 2, rows)[:, None]
    weight[0, :32] = 0
    weight[1, 1:32] = torch.linspace(-1e-6, 1e-6, 31)
    return weight.to(torch.bfloat16)


def quantized(scheme: str, weight: torch.Tensor, grid: str = "minmax") -> Quantized:
    levels = stored_levels(PRESETS[scheme], FORMATS[scheme], weight.dtype)
    importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(4))
    return quantize_rtn(weight.float(), levels, grid, importance if grid == "weighted_mse" else None)


@pytest.mark.parametrize("grid", ["minmax", "mse", "weighted_mse"])
@pytest.mark.parametrize("name", FORMATS)
def test_its_bytes_and_weights_are_those_of_compressed_tensors(name: str, grid: str) -> None:
    scheme, format, dense = PRESETS[name], formats.find(FORMATS[name]), random_weight()
    ours = with_input_scale(quantized(name, dense, grid), scheme, torch.tensor(7.0), dense.dtype)
    stored = {key[2:]: tensor for key, tensor in format.pack("m", ours, {}).items()}
    described = format.config({"m": scheme})
    group = scheme_object(described["config_groups"]["group_0"])
    # Its compressor takes scales as numbers, in float32 as our grids compute them, and the weight.
    given = {**stored, "weight": dense.float(), "weight_scale": ours.scale.float()}
    theirs = compressor(FORMATS[name]).compress(given, group)
    theirs.pop("weight_packed" if "weight_packed" not in stored else "", None)
    assert sorted(theirs) == sorted(stored)
    for key, tensor in stored.items():
        assert theirs[key].dtype is tensor.dtype, key
        assert torch.equal(theirs[key].view(torch.uint8), tensor.view(torch.uint8)), key
    read = compressor(FORMATS[name]).decompress(stored, group)["weight"]
    assert read.dtype is torch.bfloat16
    assert torch.equal(read, ours.dequantize(torch.bfloat16))
    back = format.unpack("m", scheme, described, {f"m.{n}": t for n, t in stored.items()}.__getitem__)
    assert torch.equal(back.dequantize(torch.bfloat16), read)
    assert back.dtype is torch.bfloat16
    if scheme.calibrated:
        assert back.input_scale is not None
        assert float(back.input_scale) == pytest.approx(2688 / 7)
    assert {f"m.{n}": (DTYPE_NAMES[t.dtype], tuple(t.shape)) for n, t in stored.items()} == format.tensors(
        "m", scheme, Matrix(*dense.shape), "BF16"
    )
    packing = formats.parse(described)
    assert packing is not None
    assert packing.scheme("m") == scheme


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_the_usual_powers_of_two_are_those_of_compressed_tensors(name: str) -> None:
    """Also where the largest weight lies at a border, and for zeros."""
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    borders = torch.tensor([0.0, 1.0, 1.4999, 1.5, 1.7499, 1.75, 1.7501, 1.9999, 448.0, 6.0, 2.0**-30, 3e30])
    largest = torch.cat([borders, torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 100])
    weight = torch.zeros(len(largest), 32)
    weight[:, 5] = -largest
    args = scheme_object(formats.find(FORMATS[name]).config({"m": PRESETS[name]})["config_groups"]["group_0"]).weights
    theirs, _ = calculate_qparams(-largest[:, None], torch.zeros(len(largest), 1), args)
    grid = make_grid(weight, stored_levels(PRESETS[name], FORMATS[name], torch.bfloat16), "minmax")
    assert torch.equal(grid.scale[1:], theirs[1:])  # zeros are exact with any scale
    assert torch.isfinite(grid.scale).all()


@pytest.mark.parametrize("grid", ["mse", "weighted_mse"])
@pytest.mark.parametrize("name", ["nvfp4a16", "mxfp4a16", "mxfp8a16"])
def test_a_search_finds_the_best_of_all_scales_in_a_byte(name: str, grid: str) -> None:
    """Against every scale that exists, by the same cost; E4M3's half an octave further than the search looks."""
    weight = random_weight(12, 64).float()
    levels = stored_levels(PRESETS[name], FORMATS[name], torch.bfloat16)
    costs = torch.rand(64, generator=torch.Generator().manual_seed(4)) if grid == "weighted_mse" else torch.ones(64)
    found = make_grid(weight, levels, grid, costs)
    plain = make_grid(weight, levels, "minmax")
    size = levels.numbers.columns(64)
    groups = weight.view(12, -1, size)
    weights = costs.view(1, -1, size)

    def loss(scale: torch.Tensor) -> torch.Tensor:
        steps = levels.nearest_(groups / scale[..., None], torch.zeros(1))
        return ((steps * scale[..., None] - groups).square() * weights).sum(-1)

    codes = torch.arange(256, dtype=torch.uint8)[{"nvfp4a16": slice(1, 127)}.get(name, slice(60, 190))]
    every = torch.stack([loss(found.levels.scales_of_codes(code).expand_as(plain.scale)) for code in codes])
    near = every.amin(0)
    assert bool((loss(found.scale) <= loss(plain.scale) * (1 + 1e-5)).all())
    # Costs differ by where a column stands: now and then clipping below half the range would gain a little more.
    assert float((loss(found.scale) / near.clamp_min(1e-30)).nan_to_num(1).clamp_max(10).mean()) < 1.02
    if name != "mxfp8a16":  # powers of two leave the relative error of 8-bit floats as it is
        assert float(loss(found.scale).sum()) < float(loss(plain.scale).sum())


def test_the_largest_level_may_be_four() -> None:
    """Where 5/6 of the largest weight are frequent, the scale at which it becomes 4 is better (four over six)."""
    weight = torch.tensor([[6.0, 5.0] + [4.6, 5.0] * 7])
    levels = stored_levels(PRESETS["nvfp4a16"], FORMATS["nvfp4a16"], torch.bfloat16)
    largest = torch.tensor(12.0)
    plain = make_grid(weight, levels, "minmax", largest=largest)
    found = make_grid(weight, levels, "mse", largest=largest)
    assert float(weight.max() / plain.scale) == 6
    assert float(weight.max() / found.scale) < 4.6


def test_scales_of_two_levels_neither_overflow_nor_vanish() -> None:
    """A tensor that shares its global scale with a far larger one, and one whose largest group is its own."""
    levels = stored_levels(PRESETS["nvfp4a16"], FORMATS["nvfp4a16"], torch.bfloat16)
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    for size, largest in ((1.0, 1e6), (1e30, None), (1e-30, None), (3e38, 3e38), (1e-44, None)):
        grid = make_grid(weight * size, levels, "minmax", largest=None if largest is None else torch.tensor(largest))
        stored = grid.pack(torch.zeros(4, 32, dtype=torch.uint8))
        local = stored.scale.float()
        assert float(local.min()) >= 2.0**-9
        assert float(local.max()) <= 448
        assert torch.isfinite(grid.scale).all()
        assert bool((grid.scale > 0).all())
    zeros = quantize_rtn(torch.zeros(4, 32), levels)
    assert zeros.global_scale is not None
    assert float(zeros.global_scale) == 1
    assert not zeros.dequantize(torch.float32).any()


@pytest.mark.parametrize(
    ("format", "scheme", "matrix", "problem", "remedy"),
    [
        (
            "nvfp4-pack-quantized", PRESETS["mxfp4a16"], Matrix(64, 64),
            (
                "is to be stored as float4_e2m1, groups of 32, scales in float8_e8m0; `nvfp4-pack-quantized` holds "
                "float4_e2m1, groups of 16, scales in float8_e4m3"
            ),
            "use `scheme: nvfp4` or `scheme: nvfp4a16`, or `format: mxfp4-pack-quantized`",
        ),
        (
            "mxfp4-pack-quantized", integers(4, 32, True), Matrix(64, 64),
            (
                "is to be stored as 4-bit, symmetric, groups of 32; `mxfp4-pack-quantized` holds float4_e2m1, groups "
                "of 32, scales in float8_e8m0"
            ),
            "use `scheme: mxfp4` or `scheme: mxfp4a16`, or `format: gptq` or `format: pack-quantized`",
        ),
        (
            "mxfp8-quantized", PRESETS["mxfp8a16"], Matrix(64, 80), "has 80 columns, which groups of 32 do not divide",
            "add it to `ignore` or use a scheme without groups, such as `fp8`",
        ),
        (
            "mxfp8-quantized", PRESETS["mxfp8a16"], Matrix(64, 64, transposed=True),
            "is a Conv1D module, which compressed-tensors cannot load", "use a kind that keeps weights dense",
        ),
        (
            "nvfp4-pack-quantized", PRESETS["nvfp4"], Matrix(64, 64, dtype="F16"),
            (
                "is stored as F16; transformers unpacks `nvfp4-pack-quantized` to bfloat16, and cannot multiply that "
                "with inputs of another type"
            ),
            "use `scheme: nvfp4a16`, or store the model in bfloat16 before, or `format: modelopt`",
        ),
    ],
)  # fmt: skip
def test_what_they_cannot_hold(format: str, scheme: Scheme, matrix: Matrix, problem: str, remedy: str) -> None:
    assert formats.refuse(format, scheme, matrix) == (problem, remedy)


def test_configurations_of_older_versions_are_read() -> None:
    config = formats.find("nvfp4-pack-quantized").config({"m": PRESETS["nvfp4"]})
    for part in ("weights", "input_activations"):
        del config["config_groups"]["group_0"][part]["scale_dtype"]
    packing = formats.parse(config)
    assert packing is not None
    assert packing.scheme("m") == PRESETS["nvfp4"]
