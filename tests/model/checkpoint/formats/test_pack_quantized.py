"""`pack-quantized` against its readers: compressed-tensors and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.model.checkpoint.formats import pack_quantized
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.reader import CheckpointReader
from tests.model.checkpoint.formats.checkpoints import (
    ALL,
    assert_read_back,
    compressor,
    load,
    mixed,
    random_weight,
    scheme_object,
)
from tests.model.packed import PACK_QUANTIZED, logits, make

SCHEMES = [
    integers(bits, size, symmetric)
    for bits in range(2, 9)
    for size in (32, "channel", "tensor")
    for symmetric in (True, False)
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_compressed_tensors_decompresses_to_our_weights(scheme: Scheme) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weight = random_weight(scheme, dtype=dtype)
        stored = pack_quantized.pack("m", weight, {})
        group = pack_quantized.config({"m": scheme})["config_groups"]["group_0"]
        local = {name.removeprefix("m."): tensor for name, tensor in stored.items()}
        read = compressor(PACK_QUANTIZED).decompress(local, scheme_object(group))["weight"]
        assert torch.equal(read, weight.dequantize(dtype))
        assert torch.equal(pack_quantized.unpack("m", scheme, {}, stored.__getitem__).dequantize(dtype), read)


@pytest.mark.parametrize(
    "scheme",
    [
        integers(4, 32, True), integers(4, 32, False), integers(3, "channel", False), integers(2, 16, True),
        integers(8, "channel", True), integers(8, 32, False), integers(8, "tensor", False), integers(5, 32, True),
    ],
    ids=Scheme.describe,
)  # fmt: skip
def test_transformers_loads_what_we_pack(scheme: Scheme, tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", PACK_QUANTIZED, lambda _: scheme)
    assert torch.equal(logits(load(tmp_path / "packed")), logits(dense))
    assert_read_back(tmp_path / "packed", dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_follow_the_dtype_of_the_model(dtype: torch.dtype, tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", PACK_QUANTIZED, lambda _: integers(4, 32, True), dtype=dtype)
    loaded = load(tmp_path / "packed")
    assert next(loaded.parameters()).dtype == dtype
    assert torch.equal(logits(loaded), logits(dense))


@pytest.mark.parametrize("name", ["llama_tied", "opt", "gpt_neox"])
def test_tied_and_biased_models_and_linears_outside_the_layers(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"opt": {"word_embed_proj_dim": 32, "ffn_dim": 96}}.get(name, {})
    dense = make(tmp_path / "packed", PACK_QUANTIZED, lambda _: integers(4, 32, True), name, **changes)
    assert torch.equal(logits(load(tmp_path / "packed")), logits(dense))
    with CheckpointReader(tmp_path / "packed") as reader:
        assert not (name == "llama_tied" and reader.has("lm_head.weight"))


def test_modules_of_different_schemes_and_modules_left_alone(tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", PACK_QUANTIZED, mixed)
    assert torch.equal(logits(load(tmp_path / "packed")), logits(dense))
    assert_read_back(tmp_path / "packed", dense)


def test_config_of_one_scheme() -> None:
    config = pack_quantized.config(dict.fromkeys(ALL[1:], integers(4, 128, True)), ALL[:1], act_order=True)
    assert config == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128,
                    "dynamic": False, "actorder": "weight",
                },
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "ignore": ["lm_head", "model.layers.0.mlp.down_proj"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }  # fmt: skip


def test_config_of_several_schemes_names_modules_by_pattern() -> None:
    schemes = dict.fromkeys(ALL, integers(4, 128, True))
    schemes |= {m: integers(8, "channel", True) for m in ALL if m.endswith("down_proj")}
    schemes["model.layers.1.mlp.up_proj"] = integers(2, 64, True)
    groups = pack_quantized.config(schemes)["config_groups"]
    assert {name: group["targets"] for name, group in groups.items()} == {
        "group_0": [
            r"re:^model\.layers\.0\.mlp\.up_proj$",
            r"re:^model\.layers\.2\.mlp\.up_proj$",
            r"re:^model\.layers\.\d+\.self_attn\.q_proj$",
        ],
        "group_1": [r"re:^model\.layers\.\d+\.mlp\.down_proj$"],
        "group_2": [r"re:^model\.layers\.1\.mlp\.up_proj$"],
    }
