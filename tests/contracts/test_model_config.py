"""config.json is read into one value, and its keys are looked up in no other module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.contracts.model_config import ModelConfig

ROOT = Path(runner.__file__).parent

# Modules that look up keys of config.json, and why those are not in ModelConfig.
ALLOWED = {
    "contracts/model_config.py": "it makes the value",
    "model/architecture/": "what the architecture is, and what is wrong with config.json, is decided here",
    "model/checkpoint/derived.py": "it writes config.json",
    "model/checkpoint/adapter_config.py": "it writes config.json",
    "export/gguf_metadata.py": "keys that one architecture of llama.cpp holds",
    "export/gguf_refusals.py": "keys that one architecture of llama.cpp does not hold",
    "export/executorch_folder.py": "an id that runners of programs ask for",
    "export/supported.py": "keys that graphs cannot express",
    "model/checkpoint/unpacking/": "keys of single ways in which other tools store weights",
    "model/layerwise/gguf_checkpoint.py": "a configuration of transformers that a GGUF file was read into",
    "training/layer_selection.py": "it writes config.json: every list with an entry for each layer",
    "steps/foreign_tools/run_autogptq.py": "it writes config.json as transformers of its time reads it",
    "data/special_tokens.py": "token ids, which generation_config.json has under the same names",
}
KEYS = frozenset({
    "architectures", "eos_token_id", "hidden_size", "intermediate_size", "is_encoder_decoder",
    "layer_types", "max_position_embeddings", "model_type", "n_ctx", "n_embd", "n_head", "n_layer", "n_positions",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "quantization_config", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "text_config", "tie_word_embeddings",
    "max_window_layers", "num_kv_shared_layers", "use_bidirectional_attention", "vocab_size",
})  # fmt: skip


def test_the_numbers_of_a_model() -> None:
    raw = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 3, "n_head": 4,
        "n_positions": 128, "vocab_size": 500, "quantization_config": {"bits": 4},
    }  # fmt: skip
    found = ModelConfig.of(raw)
    assert found.raw is raw
    assert (found.model_type, found.architecture) == ("gpt2", "GPT2LMHeadModel")
    assert (found.hidden_size, found.heads, found.vocabulary_size) == (64, 4, 500)
    assert (found.layer_count_key, found.layer_count) == ("n_layer", 3)
    assert (found.context_key, found.context) == ("n_positions", 128)
    assert found.quantization == {"bits": 4}


def test_the_language_model_among_others() -> None:
    found = ModelConfig.of({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text", "hidden_size": 32, "vocab_size": 100},
    })  # fmt: skip
    assert (found.model_type, found.hidden_size, found.vocabulary_size) == ("gemma3", 32, 100)


@pytest.mark.parametrize("value", [None, True, 1.5, "64", [64], {}])
def test_a_value_of_the_wrong_type_counts_as_missing(value: Any) -> None:
    keys = ("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
            "max_position_embeddings", "quantization_config", "text_config")  # fmt: skip
    found = ModelConfig.of(dict.fromkeys(keys, value))
    assert (found.hidden_size, found.layer_count, found.heads, found.vocabulary_size, found.context) == (0,) * 5
    assert found.quantization in (None, {})


def test_rotary_frequencies_by_either_key() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    assert ModelConfig.of({"rope_scaling": linear}).rotary == linear
    assert ModelConfig.of({"text_config": {"rope_parameters": linear}}).rotary == linear
    assert ModelConfig.of({"rope_scaling": None}).rotary == ModelConfig.of({"rope_scaling": "linear"}).rotary == {}


def test_no_other_module_looks_up_its_keys() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): keys
        for path in sorted(ROOT.rglob("*.py"))
        if (keys := sorted(set(_looked_up(ast.parse(path.read_text("utf-8"))))))
    }
    for place in ALLOWED:
        assert any(path.startswith(place) for path in found), place
    assert {path: keys for path, keys in found.items() if not path.startswith(tuple(ALLOWED))} == {}


def _looked_up(tree: ast.AST) -> Iterator[str]:
    """The keys of config.json in `x["key"]`, `x.get("key")` and `"key" in x`; any key of `x.raw`."""
    for node in ast.walk(tree):
        key: ast.expr | None = None
        of = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
        of = node.value if isinstance(node, ast.Subscript) else of
        if isinstance(of, ast.Attribute) and of.attr == "raw" and not ast.unparse(node).endswith(".items()"):
            yield ast.unparse(node)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            key = node.args[0] if node.args else None
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
            key = node.left
        if isinstance(key, ast.Constant) and key.value in KEYS:
            yield str(key.value)
        elif isinstance(key, ast.JoinedStr) and ast.unparse(key).endswith("_token_id'"):
            yield ast.unparse(key)
