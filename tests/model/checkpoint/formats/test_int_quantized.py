"""`int-quantized` against compressed-tensors and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from runner.model.checkpoint.reader import CheckpointReader
from tests.model.checkpoint.formats.checkpoints import (
    compressor,
    scheme_object,
)


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
