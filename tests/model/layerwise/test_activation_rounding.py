"""Rounded inputs against those of compressed-tensors' own forward."""

from __future__ import annotations

import pytest
import torch

from runner.model.checkpoint.quantization.compressed_tensors_config import write
from runner.model.checkpoint.quantization.scheme import Numbers, Scheme
from runner.model.layerwise.activation_rounding import attach, round_inputs

NUMBERS = [
    Numbers("int8", "token"), Numbers("float8_e4m3", "token"),
    Numbers("float8_e4m3", 32), Numbers("int8", 16), Numbers("int8", "tensor"), Numbers("int4", "token"),
    Numbers("float4_e2m1", 32, "float8_e8m0"), Numbers("float8_e4m3", 32, "float8_e8m0"),
    Numbers("float4_e2m1", 16, "float8_e4m3"),
]  # fmt: skip
GLOBAL = torch.tensor([2688 / 3.5])


def theirs(inputs: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    from compressed_tensors.quantization import QuantizationArgs, fake_quantize
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    scheme = Scheme(Numbers("int8", "channel"), numbers)
    group = write("int-quantized", {"m": scheme})["config_groups"]["group_0"]
    args = QuantizationArgs(**group["input_activations"])
    general = GLOBAL if numbers.two_level else None
    scale, zero = compute_dynamic_scales_and_zp(inputs, args, torch.nn.Identity(), general)
    found: torch.Tensor = fake_quantize(inputs, scale, zero, args, general)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", NUMBERS, ids=Numbers.describe)
def test_they_are_those_of_compressed_tensors(numbers: Numbers, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = (torch.randn(3, 7, 64, generator=generator) * torch.rand(3, 7, 1, generator=generator)).to(dtype)
    inputs[0, 0] = 0
    found = round_inputs(inputs, numbers, GLOBAL if numbers.two_level else None)
    assert found.dtype is dtype
    assert torch.equal(found, theirs(inputs, numbers))
    assert torch.equal(found[0, 0], inputs[0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("element", ["int8", "float8_e4m3"])
def test_calibrated_scales_clip_what_lies_beyond_them(element: str, dtype: torch.dtype) -> None:
    from compressed_tensors.quantization import QuantizationArgs, fake_quantize

    inputs = (torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    numbers, scale = (
        Numbers(element, "tensor"),
        torch.tensor([2.5 / 127.5 if element == "int8" else 2.5 / 448]).to(dtype),
    )
    scheme = Scheme(Numbers(element, "channel"), numbers, dynamic=False)
    group = write("float-quantized", {"m": scheme})["config_groups"]["group_0"]["input_activations"]
    args = QuantizationArgs(**group)
    zero = torch.zeros(1, dtype=args.zp_dtype)
    found = round_inputs(inputs, numbers, scale)
    assert torch.equal(found, fake_quantize(inputs, scale, zero, args))
    assert found.dtype is dtype
    assert float(found.abs().max()) < 2.6


def test_two_levels_need_their_global_scale() -> None:
    with pytest.raises(ValueError, match=r"^inputs rounded to float4_e2m1, groups of 16, .* need a global scale$"):
        round_inputs(torch.ones(1, 16), Numbers("float4_e2m1", 16, "float8_e4m3"))


def test_only_linears_whose_scheme_rounds_inputs_are_hooked() -> None:
    first, second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    layer = torch.nn.ModuleDict({"a": first, "b": second, "n": torch.nn.LayerNorm(8)})
    numbers = Numbers("int4", "token")
    schemes = {
        "layers.0.a": Scheme(Numbers("int8", "channel"), numbers), "layers.0.b": Scheme(Numbers("int8", "channel")),
    }  # fmt: skip
    x = torch.randn(2, 3, 8)
    before = first(x), second(x)
    (handle,) = attach(layer, "layers.0", schemes.get, lambda name: None)
    assert torch.equal(first(x), torch.nn.functional.linear(round_inputs(x, numbers), first.weight, first.bias))
    assert not torch.equal(first(x), before[0])
    assert torch.equal(second(x), before[1])
    handle.remove()
    assert torch.equal(first(x), before[0])
