"""bitsandbytes' 4-bit codebooks: its bytes and its weights, by itself where it is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from typing import Any

import pytest
import torch

from runner.methods.quantization_grid import quantize_rtn
from runner.methods.quantization_scheme import stored_levels
from runner.model.checkpoint import formats
from runner.model.checkpoint.formats import bitsandbytes
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import integers
from runner.model.checkpoint.reader import DTYPE_NAMES

ROWS, COLUMNS = 1000, 1024
INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
# sha256 of what bitsandbytes 0.50.2's quantize_4bit makes of `random_weight`: its codes and its absmax
RECORDED = {
    "nf4": (
        "31a8f5219f8304ae4abd0241e807ed402bac4065f8285f36a668bfdba1f6a744",
        "37d45feb174ce91785926a9149e74579cfe5c0ece0c87b912322e371e0a0ece0",
    ),
    "fp4": (
        "ddac5e21eaf64b1755f74955f91f3519a7365de3d3e545d7d23594d69578abb2",
        "37d45feb174ce91785926a9149e74579cfe5c0ece0c87b912322e371e0a0ece0",
    ),
}


def random_weight(dtype: torch.dtype, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    """Numbers with as many exponents as rows may have, and multiples of 2⁻¹⁰, which lie at borders of levels of fp4."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randint(-1024, 1025, (rows, columns), generator=generator).float() / 1024
    weight += torch.randn(rows, columns, generator=generator) * (torch.arange(rows) % 2)[:, None]
    return (weight * (2.0 ** (torch.arange(rows) % 20 - 10))[:, None]).to(dtype)


def quantized(name: str, weight: torch.Tensor, grid: str = "minmax") -> Quantized:
    return quantize_rtn(weight.float(), stored_levels(PRESETS[name], "bitsandbytes", weight.dtype), grid)


def packed(name: str, weight: Quantized, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return bitsandbytes.pack("m", weight, {bitsandbytes.COMPUTE: str(dtype).removeprefix("torch.")})


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_a_million_values_have_the_bytes_that_bitsandbytes_gave_them(name: str) -> None:
    stored = packed(name, quantized(name, random_weight(torch.bfloat16)), torch.bfloat16)
    assert (digest(stored["m.weight"]), digest(stored["m.weight.absmax"])) == RECORDED[name]


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_its_bytes_and_weights_are_those_of_bitsandbytes(name: str, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit

    weight = random_weight(dtype)
    ours = quantized(name, weight)
    stored = packed(name, ours, dtype)
    codes, state = quantize_4bit(weight, blocksize=64, quant_type=name)
    theirs = {"m.weight": codes, **{f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
    assert sorted(stored) == sorted(theirs)
    for key, tensor in theirs.items():
        assert stored[key].dtype is tensor.dtype, key
        assert torch.equal(stored[key], tensor), key
    own = {key.removeprefix("m.weight."): value for key, value in stored.items() if key != "m.weight"}
    read = dequantize_4bit(stored["m.weight"], QuantState.from_dict(own, device=torch.device("cpu")))
    assert read.dtype is dtype
    assert torch.equal(read, ours.dequantize(dtype))


@pytest.mark.parametrize("grid", ["minmax", "mse"])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_what_is_packed_is_unpacked(name: str, grid: str) -> None:
    weight = random_weight(torch.bfloat16, 40, 192)
    weight[3, :64] = 0
    ours, scheme = quantized(name, weight, grid), PRESETS[name]
    stored = packed(name, ours, weight.dtype)
    assert {key: (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for key, tensor in stored.items()} == (
        bitsandbytes.tensors("m", scheme, Matrix(*weight.shape), "BF16")
    )
    described = bitsandbytes.config({"m": scheme}, ["n"])
    packing = formats.parse(described)
    assert packing is not None
    assert packing.scheme("m") == scheme
    assert described["llm_int8_skip_modules"] == ["lm_head", "n"]
    back = bitsandbytes.unpack("m", scheme, described, stored.__getitem__)
    assert torch.equal(back.codes, ours.codes)
    assert torch.equal(back.scale, ours.scale)
    assert not bool(back.dequantize(torch.bfloat16)[3, :64].any())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blocksize": 128}, "it has blocks of 128 values of nf4"),
        ({"shape": [40, 96]}, "7680 codes are no matrix of 40 × 96 in groups of 64"),
        ({"shape": 3}, "is stored by bitsandbytes with a `quant_state` that is not understood"),
    ],
)
def test_damaged_states_are_named(changed: dict[str, Any], message: str) -> None:
    weight = random_weight(torch.bfloat16, 40, 192)
    stored = packed("nf4", quantized("nf4", weight), weight.dtype)
    name = "m.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(stored[name].numpy().tobytes()) | changed
    stored[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bitsandbytes.unpack("m", PRESETS["nf4"], {}, stored.__getitem__)


def test_another_table_is_not_read_as_nf4() -> None:
    weight = random_weight(torch.bfloat16, 40, 192)
    stored = packed("nf4", quantized("nf4", weight), weight.dtype)
    stored["m.weight.quant_map"] = stored["m.weight.quant_map"] * 2
    with pytest.raises(ValueError, match="its `quant_map` is not that of nf4"):
        bitsandbytes.unpack("m", PRESETS["nf4"], {}, stored.__getitem__)


def test_what_it_cannot_hold() -> None:
    assert formats.refuse("bitsandbytes", integers(4, 64, True), Matrix(64, 64)) == (
        "is to be stored as 4-bit, symmetric, groups of 64; `bitsandbytes` holds nf4 and fp4 in groups of 64",
        "use `scheme: nf4` or `scheme: fp4`, or `format: gptq` or `format: pack-quantized`",
    )
    assert formats.refuse("bitsandbytes", PRESETS["nf4"], Matrix(64, 96)) == (
        "has 96 columns, which groups of 64 do not divide", "add it to `ignore` or use another scheme",
    )  # fmt: skip
    assert formats.refuse("pack-quantized", PRESETS["nf4"], Matrix(64, 64)) == (
        "is to be stored as nf4, groups of 64; `pack-quantized` holds integers",
        "use a scheme of integers, or `format: bitsandbytes`",
    )
    together = bitsandbytes.refuse_together([PRESETS["nf4"], PRESETS["fp4"]])
    assert together == ("`bitsandbytes` checkpoints have one codebook for all modules", "drop `overrides`")
    with pytest.raises(ValueError, match="of bitsandbytes only 4 bits with float32 scales can be read"):
        formats.parse({"quant_method": "bitsandbytes", "load_in_8bit": True})
