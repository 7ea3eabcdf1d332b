"""8-bit floats in blocks of 128 × 128 against transformers' own code of that format."""

from __future__ import annotations

import pytest
import torch

from runner.methods.quantization_grid import quantize_rtn
from runner.methods.quantization_scheme import stored_levels
from runner.model.checkpoint import formats
from runner.model.checkpoint.formats import fp8
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.reader import DTYPE_NAMES

SCHEME = PRESETS["fp8_block"]


def test_weights_are_those_that_transformers_reads() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(256, 384, generator=generator) * torch.logspace(-3, 3, 256)[:, None]
    dense[:128, :128] = 0
    ours = quantize_rtn(dense, stored_levels(SCHEME, "fp8", torch.bfloat16), "mse")
    stored = fp8.pack("m", ours, {})
    assert {n: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for n, t in stored.items()} == fp8.tensors(
        "m", SCHEME, Matrix(256, 384), "BF16"
    )
    read = Fp8Dequantize(None)._dequantize_one(stored["m.weight"], stored["m.weight_scale_inv"], torch.float32)
    assert torch.equal(read, ours.dequantize(torch.float32))
    config = fp8.config({"m": SCHEME}, ["gate"])
    back = fp8.unpack("m", SCHEME, config, stored.__getitem__)
    assert torch.equal(back.dequantize(torch.float32), read)
    # A block's largest weight is 448 scales, as transformers' own quantizer has it.
    rounded = quantize_rtn(dense, stored_levels(SCHEME, "fp8", torch.bfloat16), "minmax")
    largest = dense.view(2, 128, 3, 128).abs().amax((1, 3))
    assert torch.allclose(rounded.scale[largest > 0], (largest / 448)[largest > 0], rtol=1e-6)


def test_the_configuration_is_that_of_published_models() -> None:
    config = fp8.config({"m": SCHEME}, ["model.layers.0.mlp.gate"])
    assert config == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
    }  # fmt: skip
    packing = formats.parse(config)
    assert packing is not None
    assert packing.formats == ("fp8",)
    assert packing.scheme("m") == SCHEME


@pytest.mark.parametrize("config", [
    {"quant_method": "fp8", "weight_block_size": [64, 64]},
    {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"},
])  # fmt: skip
def test_other_blocks_are_not_read_as_these(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="8-bit floats in blocks of"):
        formats.parse(config)


@pytest.mark.parametrize(("scheme", "matrix", "problem", "remedy"), [
    (PRESETS["fp8"], Matrix(128, 128),
     f"is to be stored as {PRESETS['fp8'].describe()}; `fp8` holds {SCHEME.describe()}", "use `scheme: fp8_block`"),
    (SCHEME, Matrix(128, 192), "has 192 columns, which groups of 128 inputs do not divide",
     "use `scheme: fp8` or add it to `ignore`"),
    (SCHEME, Matrix(576, 128), "has 576 rows, which blocks of 128 do not divide: transformers reads others",
     "use `scheme: fp8` or add it to `ignore`"),
    (SCHEME, Matrix(128, 128, transposed=True), "is a Conv1D module, which readers of `fp8` do not know",
     "use a kind that keeps weights dense"),
])  # fmt: skip
def test_what_it_cannot_hold(scheme: Scheme, matrix: Matrix, problem: str, remedy: str) -> None:
    assert fp8.refuse(scheme, matrix) == (problem, remedy)


def test_a_short_block_is_one() -> None:
    assert fp8.refuse(SCHEME, Matrix(64, 128)) is None
