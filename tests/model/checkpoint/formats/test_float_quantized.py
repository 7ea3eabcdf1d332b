"""`float-quantized` against compressed-tensors: its bytes for equal scales, and its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runner.methods.quantization_grid import quantize_rtn
from runner.methods.quantization_scheme import with_input_scale
from runner.model.checkpoint import formats
from runner.model.checkpoint.formats import float_quantized
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.scheme import Numbers, Scheme
from tests.model.checkpoint.formats.checkpoints import compressor, scheme_object

TOKENS = Numbers("float8_e4m3", "token")
SCHEMES = [
    Scheme(Numbers("float8_e4m3", "channel"), TOKENS), Scheme(Numbers("float8_e4m3", "tensor"), TOKENS),
    Scheme(Numbers("float8_e4m3", (16, 32)), Numbers("float8_e4m3", 32)), Scheme(Numbers("float8_e4m3", "channel")),
    Scheme(Numbers("float8_e4m3", "channel"), Numbers("float8_e4m3", "tensor"), dynamic=False),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_its_bytes_and_weights_are_those_of_compressed_tensors(scheme: Scheme, dtype: torch.dtype) -> None:
    dense = torch.randn(40, 96, generator=torch.Generator().manual_seed(3)).to(dtype)  # 40 rows: a short last block
    ours = with_input_scale(quantize_rtn(dense, Levels(scheme.weights, dtype)), scheme, torch.tensor(3.0), dtype)
    stored = {name[2:]: tensor for name, tensor in float_quantized.pack("m", ours, {}).items()}
    described = float_quantized.config({"m": scheme})
    group = scheme_object(described["config_groups"]["group_0"])
    theirs = compressor("float-quantized").compress({**stored, "weight": dense}, group)
    assert (
        sorted(theirs) == sorted(stored) == [*(["input_scale"] if scheme.calibrated else []), "weight", "weight_scale"]
    )
    differ = theirs["weight"].view(torch.uint8) != stored["weight"].view(torch.uint8)
    # It divides in the dtype of the weight: a bf16 quotient is rounded once more before it meets a level.
    assert differ.float().mean() <= (0 if dtype is torch.float32 else 0.08)
    read = compressor("float-quantized").decompress(stored, group)["weight"]
    assert torch.equal(read, ours.dequantize(dtype))
    back = float_quantized.unpack("m", scheme, described, {f"m.{n}": t for n, t in stored.items()}.__getitem__)
    assert torch.equal(back.dequantize(dtype), ours.dequantize(dtype))
    forecast = float_quantized.tensors("m", scheme, Matrix(40, 96), {torch.float32: "F32"}.get(dtype, "BF16"))
    assert {name: shape for name, (_, shape) in forecast.items()} == {
        f"m.{name}": tuple(tensor.shape) for name, tensor in stored.items()
    }
    packing = formats.parse(described)
    assert packing is not None
    assert packing.scheme("m") == scheme


@pytest.mark.parametrize(
    ("scheme", "matrix", "problem", "remedy"),
    [
        (
            Scheme(Numbers("int8", "channel")), Matrix(64, 64),
            "is to be stored as 8-bit, symmetric, per channel; `float-quantized` holds float8_e4m3",
            (
                "use `scheme: fp8` or `scheme: fp8_block`, or `format: gptq` or `format: int-quantized` or "
                "`format: pack-quantized`"
            ),
        ),
        (
            Scheme(Numbers("float8_e4m3", 32)), Matrix(64, 64),
            "has float8_e4m3, groups of 32; `float-quantized` has no groups", "use `scheme: fp8`",
        ),
        (
            SCHEMES[0], Matrix(64, 64, transposed=True), "is a Conv1D module, which compressed-tensors cannot load",
            "use a kind that keeps weights dense",
        ),
        (
            SCHEMES[2], Matrix(64, 80), "has 80 columns, which groups of 32 inputs do not divide",
            "use `scheme: fp8` or add it to `ignore`",
        ),
    ],
)  # fmt: skip
def test_what_it_cannot_hold(scheme: Scheme, matrix: Matrix, problem: str, remedy: str) -> None:
    assert formats.refuse("float-quantized", scheme, matrix) == (problem, remedy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"num_bits": 4, "type": "float", "strategy": "channel"}}, "4-bit float weights"),
        (
            {"input_activations": {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}},
            "inputs that compressed-tensors rounds with calibrated scales to float8_e4m3, groups of 32",
        ),
        (
            {"input_activations": {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": False}},
            "inputs that compressed-tensors rounds to 8-bit, asymmetric, per token",
        ),
        ({"output_activations": {"num_bits": 8}}, "rounded outputs"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    config = float_quantized.config({"m": SCHEMES[0]})
    config["config_groups"]["group_0"] |= changes
    with pytest.raises(ValueError, match=f"^{message}.* cannot be (read|computed); a dense checkpoint is needed$"):
        formats.parse(config)
