"""Descriptions of checkpoints against what transformers loads of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from runner.contracts import model_description
from runner.contracts.model_description import ModelDescription, Problem
from runner.model.checkpoint import headers
from runner.model.layerwise import refusals
from runner.model.layerwise.describe import describe
from runner.model.layerwise.empty_model import build_empty
from tests import model_types, tiny


def described(folder: Path) -> ModelDescription:
    tensors = {name: list(header.shape) for name, header in headers.read_headers(folder).items()}
    answer = describe({"folder": str(folder), "tensors": tensors, "packed": {}, "own_code": False})
    return model_description.from_json(json.loads(json.dumps(answer)))


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_it_agrees_with_the_model_that_transformers_loads(tmp_path: Path, name: str) -> None:
    found = described(tiny.save(tmp_path, name))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, loading = loaded
    state = model.state_dict()
    assert (found.problems, found.missing, found.unexpected, found.misshaped) == ((), (), (), {})
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert {each.name: each.shape for each in found.parameters} == {n: tuple(t.shape) for n, t in state.items()}
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for each in found.parameters:
        source = each.stored or {p.name: p.stored for p in found.parameters}[(found.ties or {})[each.name]]
        assert torch.equal(state[each.name], stored[str(source)]), each
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {each.name for each in found.parameters if each.kind == "linear" and each.name.endswith("weight")} == linear
    assert found.layer_count == 3
    assert len(model.get_submodule(found.layers)) == 3


def test_a_head_stored_alone_gives_the_embedding(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama_tied")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = described(tmp_path)
    assert found.ties == {"model.embed_tokens.weight": "lm_head.weight"}
    assert (found.missing, found.both_stored) == ((), {})


def test_a_tied_model_that_stores_both_says_so(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama_tied")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = described(tmp_path)
    assert found.ties == {}
    assert found.both_stored == {"lm_head.weight": "model.embed_tokens.weight"}


def test_it_names_what_is_missing_misshaped_and_unexpected(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(5)
    tensors["score.weight"] = torch.ones(5)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = described(tmp_path)
    assert found.missing == ("model.layers.1.mlp.up_proj.weight",)
    assert found.misshaped == {"model.norm.weight": (5,)}
    assert found.unexpected == ("score.weight",)
    assert found.ignored == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": "a"}, Problem(
            "config", "StrictDataclassFieldValidationError",
            "TypeError: Field 'hidden_size' expected int, got str (value: 'a')", ("hidden_size",))),
        ({"num_attention_heads": 3}, Problem(
            "config", "StrictDataclassClassValidationError",
            "ValueError: The hidden size (32) is not a multiple of the number of attention heads (3).",
            ("num_attention_heads",))),
        ({"num_key_value_heads": 0}, Problem(
            "model", "ZeroDivisionError", "ZeroDivisionError: integer division or modulo by zero",
            ("num_key_value_heads",))),
        ({"hidden_act": "foo"}, Problem("model", "KeyError", "KeyError: 'foo'", ("hidden_act",))),
        ({"pad_token_id": 200}, Problem(
            "model", "AssertionError", "AssertionError: Padding_idx must be within num_embeddings",
            ("vocab_size", "pad_token_id"))),
        ({"dtype": "foo"}, Problem(
            "config", "AttributeError", "AttributeError: module 'torch' has no attribute 'foo'", ("dtype",))),
    ],
)  # fmt: skip
def test_refusals_come_with_their_keys(tmp_path: Path, changes: dict[str, Any], problem: Problem) -> None:
    change(tiny.save(tmp_path, "llama"), **changes)
    found = described(tmp_path).problems
    assert [Problem(p.stage, p.error, p.words, tuple(sorted(p.keys))) for p in found] == [
        Problem(problem.stage, problem.error, problem.words, tuple(sorted(problem.keys)))
    ]


def test_a_model_that_is_built_and_cannot_run_is_refused(tmp_path: Path) -> None:
    kinds = ["full_attention", "chunked_attention", "full_attention"]
    change(tiny.save(tmp_path, "gemma2"), layer_types=kinds)
    assert described(tmp_path).problems == (
        Problem("forward", "KeyError", "KeyError: 'chunked_attention'", ("layer_types",)),
    )


@pytest.mark.parametrize("changes", [{"num_experts_per_tok": 9}, {"n_group": -1}])
def test_experts_and_groups_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    AutoModelForCausalLM.from_config(model_types.config("deepseek_v3")).save_pretrained(tmp_path)
    change(tmp_path, **changes)
    assert [problem.stage for problem in described(tmp_path).problems] == ["forward"]


@pytest.mark.parametrize("type", ["mixtral", "qwen3_5_moe"])
def test_experts_of_float32_are_run_without_values(type: str) -> None:
    """The grouped products that transformers chooses are of bfloat16 alone on the meta device."""
    model = build_empty(model_types.config(type), dtype=torch.float32)
    before = model.get_experts_implementation()
    refusals.meta_forward(model)
    assert model.get_experts_implementation() == before


@pytest.mark.parametrize(
    ("words", "counts"),
    [("mat1 and mat2 shapes cannot be multiplied (6x8 and 4x8)", True), ("no kernel for this device", False)],
)
def test_a_failure_with_no_key_to_blame_counts_where_it_is_about_shapes(
    words: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(refusals, "meta_forward", fail)
    found = described(tiny.save(tmp_path)).problems
    expected = [("forward", "RuntimeError", (), f"RuntimeError: {words}")] if counts else []
    assert [(each.stage, each.error, each.keys, each.words) for each in found] == expected
