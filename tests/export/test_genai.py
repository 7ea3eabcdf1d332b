"""genai_config.json: what onnxruntime-genai 0.18 reads; benchmarks/readers runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.contracts.model_config import ModelConfig
from runner.export import genai
from runner.export.decoder import Shape
from tests.export.exported import MODEL

SHAPE = Shape(6, 2, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL / name, tmp_path / name)
    return tmp_path


def config(folder: Path) -> ModelConfig:
    return ModelConfig.of(json.loads((folder / "config.json").read_text()))


def test_the_embedded_model(folder: Path) -> None:
    found = genai.config(folder, config(folder), SHAPE, "onnx/model.onnx", 2048, in_place=False)
    assert found is not None
    assert found["search"]["past_present_share_buffer"] is False
    assert found["search"]["max_length"] == 2048
    decoder = found["model"].pop("decoder")
    assert found["model"] == {
        "type": "llama", "vocab_size": 4096, "context_length": 2048, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 3,
    }  # fmt: skip
    assert decoder == {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []}, "filename": "onnx/model.onnx",
        "hidden_size": 256, "head_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 6,
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
        },
    }  # fmt: skip


def test_a_shared_cache_of_a_long_context_is_not_allocated_whole(folder: Path) -> None:
    found = genai.config(folder, config(folder), SHAPE, "onnx/model.onnx", 131072, in_place=True)
    assert found is not None
    assert (found["model"]["context_length"], found["search"]["max_length"]) == (131072, 4096)
    assert found["search"]["past_present_share_buffer"] is True


def test_several_tokens_end_a_text(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    found = genai.config(folder, config(folder), SHAPE, "onnx/model.onnx", 2048, in_place=False)
    assert found is not None
    assert (found["model"]["eos_token_id"], found["model"]["pad_token_id"]) == ([2, 7], 3)


def test_the_tokenizer_names_the_end(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    raw = json.loads((folder / "config.json").read_text())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        del raw[key]
    other = ModelConfig.of(raw | {"model_type": "gpt_neox"})
    found = genai.config(folder, other, SHAPE, "onnx/model.onnx", 64, in_place=False)
    assert found is not None
    model = found["model"]
    assert (model["type"], model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == ("decoder", 2, 2, 2)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert genai.config(folder, config(folder), SHAPE, "onnx/model.onnx", 2048, in_place=False) is None
