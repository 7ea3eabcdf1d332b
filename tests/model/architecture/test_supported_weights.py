"""Checkpoints whose weights mean nothing to the reader are refused by their headers, never read as plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.errors import RecipeError
from runner.model.architecture import inspect
from tests.model.checkpoints import LLAMA, Shapes, llama_shapes, write

INTEGERS = {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True}
NO_GROUPS = "its quantization_config of `compressed-tensors` is not understood: 'list' object has no attribute 'values'"


def stored(dtype: str, scale: str | None = None) -> Shapes:
    """The tensors of a tiny Llama with its linears in `dtype`, beside each a tensor of scales of that name."""
    found: dict[str, tuple[str, list[int]]] = {}
    for name, (_, shape) in llama_shapes().items():
        linear = name.endswith("proj.weight")
        found[name] = (dtype if linear else "BF16", shape)
        if linear and scale:
            found[name.removesuffix("weight") + scale] = ("F32", [shape[0], 1])
    return found


def of_groups(format: str, **group: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "quantization", "message"),
    [
        (stored("BF16"), {"quant_method": "hqq"},
         "`m`: checkpoints quantized with `hqq` cannot be read; a dense checkpoint is needed"),
        (stored("F8_E4M3", "weight_scale"), of_groups("nvfp4-pack-quantized", weights={**INTEGERS, "type": "float"}),
         ("`m`: float8_e4m3, per channel in the format `nvfp4-pack-quantized` of compressed-tensors cannot be read; "
          "a dense checkpoint is needed")),
        (stored("I8", "weight_scale"), of_groups("int-quantized", weights=INTEGERS, input_activations=INTEGERS),
         ("`m`: inputs that compressed-tensors rounds with calibrated scales to 8-bit, symmetric, per channel cannot "
          "be computed; a dense checkpoint is needed")),
        (stored("BF16"), {"quant_method": "gptq", "bits": 4},
         "`m`: its quantization_config of `gptq` lacks `group_size`"),
        (stored("BF16"), of_groups("pack-quantized", weights=INTEGERS) | {"config_groups": ["Linear"]},
         f"`m`: {NO_GROUPS}"),
        (stored("F8_E4M3"), None,
         "`model.layers.0.mlp.down_proj.weight` of `m` is stored as F8_E4M3, and nothing in config.json says how"),
        (stored("I8"), of_groups("int-quantized", weights=INTEGERS),
         "`model.layers.0.mlp.down_proj.weight` of `m` is stored as I8, and nothing in config.json says how"),
        ({name.replace("proj.weight", "proj.weight_packed"): s for name, s in stored("I32").items()}, None,
         "`model.layers.0.mlp.down_proj` of `m` is packed, and nothing in config.json says how"),
    ],
    ids=[
        "hqq", "nvfp4", "calibrated activations", "no group size", "no groups", "fp8 alone",
        "no scales", "packed alone",
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, shapes: Shapes, quantization: dict[str, Any] | None, message: str) -> None:
    folder = write(tmp_path, shapes, LLAMA | ({"quantization_config": quantization} if quantization else {}))
    with pytest.raises(RecipeError) as caught:
        inspect.facts(folder, "m")
    assert [(d.code, d.message, d.help) for d in caught.value.diagnostics] == [
        ("R409", message, "start from the model as it was before it was quantized")
    ]


@pytest.mark.parametrize("method", ["awq", "fp8", "bitsandbytes", "mxfp4"])
def test_dense_weights_that_config_calls_something_else(tmp_path: Path, method: str) -> None:
    folder = write(tmp_path, stored("BF16"), LLAMA | {"quantization_config": {"quant_method": method}})
    with pytest.raises(RecipeError) as caught:
        inspect.facts(folder, "m")
    assert [(d.code, d.message) for d in caught.value.diagnostics] == [
        ("R642", f"`m` stores no weight as its config.json says (quant_method `{method}`)")
    ]


def test_plain_integers_with_scales_are_read(tmp_path: Path) -> None:
    mark = of_groups("int-quantized", weights=INTEGERS)
    folder = write(tmp_path, stored("I8", "weight_scale"), LLAMA | {"quantization_config": mark})
    assert inspect.facts(folder, "m").quantization == mark
