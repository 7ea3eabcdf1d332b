"""`modelopt` against compressed-tensors' converter of ModelOpt's NVFP4, and ModelOpt itself where it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter

from runner.methods.quantization_grid import quantize_rtn
from runner.methods.quantization_scheme import stored_levels, with_input_scale
from runner.model.checkpoint import formats
from runner.model.checkpoint.formats import modelopt, nvfp4_pack_quantized
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.reader import DTYPE_NAMES


def weight(name: str) -> Quantized:
    dense = torch.randn(24, 64, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    levels = stored_levels(PRESETS[name], "modelopt", dense.dtype)
    return with_input_scale(quantize_rtn(dense.float(), levels), PRESETS[name], torch.tensor(7.0), dense.dtype)


def test_compressed_tensors_converts_its_nvfp4() -> None:
    ours = weight("nvfp4")
    stored = modelopt.pack("m", ours, {})
    converted = ModelOptNvfp4Converter(targets=["m"]).process(dict(stored))
    wanted = nvfp4_pack_quantized.pack("m", ours, {})
    assert sorted(converted) == sorted(wanted)
    for name, tensor in wanted.items():
        if "global" in name:  # a reciprocal of a reciprocal
            assert float(converted[name]) == pytest.approx(float(tensor), rel=1e-6)
        else:
            assert torch.equal(converted[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="nvidia-modelopt is not installed")
@pytest.mark.filterwarnings("ignore")  # of its imports
def test_modelopt_computes_the_weight_that_we_compute() -> None:
    nvfp4: Any = importlib.import_module("modelopt.torch.quantization.qtensor").NVFP4QTensor
    ours = weight("nvfp4")
    stored = modelopt.pack("m", ours, {})
    theirs = nvfp4(torch.Size([24, 64]), torch.bfloat16, stored["m.weight"]).dequantize(
        dtype=torch.bfloat16, scale=stored["m.weight_scale"], double_scale=stored["m.weight_scale_2"],
        block_sizes={-1: 16},
    )  # fmt: skip
    assert float((theirs.float() - ours.dequantize(torch.bfloat16).float()).abs().max()) <= 2**-8 * 4
    dense = ours.dequantize(torch.float32)
    packed, scale, double = nvfp4.quantize(dense, 16)
    again = quantize_rtn(dense, stored_levels(PRESETS["nvfp4"], "modelopt", torch.bfloat16))
    assert torch.equal(scale.float(), again.scale.float())
    assert again.global_scale is not None
    assert float(double) == pytest.approx(1 / float(again.global_scale), rel=1e-6)
    back = packed.dequantize(dtype=torch.float32, scale=scale, double_scale=double, block_sizes={-1: 16})
    torch.testing.assert_close(back, again.dequantize(torch.float32), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", ["nvfp4", "fp8"])
def test_what_is_written_is_planned_and_read_back(name: str) -> None:
    ours, scheme = weight(name), PRESETS[name]
    stored = modelopt.pack("m", ours, {})
    assert {n: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for n, t in stored.items()} == modelopt.tensors(
        "m", scheme, Matrix(24, 64), "BF16"
    )
    config = modelopt.config({"m": scheme}, ["model.norm"])
    packing = formats.parse(config)
    assert packing is not None
    assert (packing.scheme("m"), packing.scheme("lm_head"), packing.scheme("model.norm")) == (scheme, None, None)
    back = modelopt.unpack("m", scheme, config, stored.__getitem__)
    assert torch.equal(back.codes, ours.codes)
    torch.testing.assert_close(back.dequantize(torch.float32), ours.dequantize(torch.float32), rtol=2**-7, atol=1e-6)


def test_the_configurations_that_modelopt_writes() -> None:
    own = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": ["lm_head"]}
    assert modelopt.config({"m": PRESETS["nvfp4"]}) == {
        "quant_method": "modelopt", "producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": own,
    }  # fmt: skip
    flat = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.1.*"]}
    packing = formats.parse(flat)
    assert packing is not None
    assert packing.scheme("model.layers.0.mlp.up_proj") == PRESETS["nvfp4"]
    assert packing.scheme("model.layers.1.mlp.up_proj") is None
    with pytest.raises(ValueError, match=r"^weights that ModelOpt stores as W4A8_AWQ cannot be read; a dense"):
        formats.parse({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"})


def test_what_it_cannot_hold() -> None:
    assert formats.refuse("modelopt", PRESETS["nvfp4a16"], Matrix(64, 64)) == (
        (
            "is to be stored as float4_e2m1, groups of 16, scales in float8_e4m3; `modelopt` holds NVFP4 and "
            "FP8_PER_CHANNEL_PER_TOKEN"
        ),
        "use `scheme: nvfp4` or `scheme: fp8`, or `format: nvfp4-pack-quantized`",
    )  # fmt: skip
    assert modelopt.refuse_together([PRESETS["nvfp4"], PRESETS["fp8"]]) == (
        "`modelopt` checkpoints are written with one scheme for all modules", "drop `overrides`, or leave out `format`",
    )  # fmt: skip
