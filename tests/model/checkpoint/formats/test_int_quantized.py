"""`int-quantized` against compressed-tensors and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.model.checkpoint.formats import int_quantized
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.reader import CheckpointReader
from tests.model.checkpoint.formats.checkpoints import assert_read_back, compressor, load, random_weight, scheme_object
from tests.model.packed import logits, make


def test_int_quantized_weights_of_others_are_read(tmp_path: Path) -> None:
    """Written by the compressed-tensors package itself."""
    writer = compressor("int-quantized")
    for size, scale in (("channel", torch.rand(8, 1) / 100), ("tensor", torch.rand(1) / 100)):
        for symmetric in (True, False):
            args = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": size, "dynamic": False}
            group = {"targets": ["Linear"], "weights": args}
            scheme = scheme_object(group)
            state = {"weight": torch.randn(8, 32) / 10, "weight_scale": scale}
            if not symmetric:
                state["weight_zero_point"] = torch.full_like(scale, -7, dtype=torch.int8)
            stored = writer.compress(state, scheme)
            save_file({f"m.{n}": t.contiguous() for n, t in stored.items()}, tmp_path / "model.safetensors")
            config = {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {"group_0": group},
            }
            (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
            with CheckpointReader(tmp_path) as reader:
                assert reader.is_packed("m.weight")
                assert torch.equal(reader.read_weight("m.weight"), writer.decompress(stored, scheme)["weight"])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("layout", ["channel", "tensor"])
def test_its_bytes_are_those_of_compressed_tensors_for_equal_scales(layout: str, symmetric: bool) -> None:
    scheme = integers(8, layout, symmetric)
    group = int_quantized.config({"m": scheme})["config_groups"]["group_0"]
    ours = random_weight(scheme, dtype=torch.float32)
    stored = {name[2:]: tensor for name, tensor in int_quantized.pack("m", ours, {}).items()}
    state = {**stored, "weight": ours.dequantize(torch.float32)}
    assert {name: t.dtype for name, t in stored.items() if name != "weight_scale"} == {
        name: torch.int8 for name in stored if name != "weight_scale"
    }
    theirs = compressor("int-quantized").compress(state, scheme_object(group))
    assert sorted(theirs) == sorted(stored)
    for name, tensor in stored.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("scheme", [integers(8, "channel", True), integers(8, "channel", False)], ids=Scheme.describe)
def test_transformers_loads_what_we_write(scheme: Scheme, tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", "int-quantized", lambda _: scheme)
    assert torch.equal(logits(load(tmp_path / "packed")), logits(dense))
    assert_read_back(tmp_path / "packed", dense)
