from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from runner.model.layerwise import tensor_names
from runner.model.layerwise.conversions import Conversions
from runner.model.layerwise.streamed_model import StreamedModel

MIXTRAL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "num_local_experts": 12,
}  # fmt: skip


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A mixture of twelve experts, each in tensors of its own: the tenth sorts before the second by name."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["mixtral"](**MIXTRAL)).save_pretrained(tmp_path)
    assert "model.layers.0.block_sparse_moe.experts.10.w1.weight" in load_file(tmp_path / "model.safetensors")
    return tmp_path


def test_fused_experts_are_those_that_transformers_makes(stored: Path) -> None:
    streamed = StreamedModel(stored, dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(stored, dtype=torch.float32)
    for index in range(2):
        layer = streamed.load(index)
        wanted = dict(loaded.model.layers[index].named_parameters())
        assert dict(layer.named_parameters()).keys() == wanted.keys()
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, wanted[name]), name


def test_a_missing_expert_cannot_be_converted_and_packed_experts_can(stored: Path) -> None:
    streamed = StreamedModel(stored)
    shapes = {name: tuple(header.shape) for name, header in streamed.reader.headers.items()}
    first = "model.layers.0.block_sparse_moe.experts.0.w2"
    whole = tensor_names.name_map(streamed.model, shapes)
    assert Conversions(streamed.model, whole.converted, shapes).failed == []
    lacking = {name: shape for name, shape in shapes.items() if name != f"{first}.weight"}
    made = Conversions(streamed.model, tensor_names.name_map(streamed.model, lacking).converted, lacking)
    assert "model.layers.0.block_sparse_moe.experts.1.w2.weight" in made.failed
    packed = {**lacking, f"{first}.weight_packed": (32, 6), f"{first}.weight_scale": (32, 1)}
    names = tensor_names.name_map(streamed.model, packed)
    assert names.packed == (f"{first}.weight_scale",)
    assert Conversions(streamed.model, names.converted, {**packed, f"{first}.weight": (32, 48)}).failed == []
