"""Sites against the modules that transformers' own model multiplies by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig

from runner.contracts.sites import Site
from runner.model.architecture.sites import role, with_fused
from runner.plan.resolve_inputs import find_model
from runner.recipe.types import ModelSpec
from tests import tiny


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_they_are_the_linear_modules_of_the_decoder_layers(tmp_path: Path, name: str) -> None:
    facts = find_model(ModelSpec(str(tiny.save(tmp_path, name))), None).model.facts
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    layers = next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    wanted = {
        each: (module.in_features, module.out_features) if isinstance(module, nn.Linear) else tuple(module.weight.shape)
        for each, module in model.named_modules()
        if each.startswith(layers) and type(module).__name__ in ("Linear", "Conv1D")
    }
    assert {site.name: (site.columns, site.rows) for site in facts.sites} == wanted
    assert {site.transposed for site in facts.sites} == {name == "gpt2"}
    assert {site.role for site in facts.sites} <= {"q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down"}


def test_a_norm_with_a_row_for_each_head_is_none(tmp_path: Path) -> None:
    config = CohereConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_qk_norm=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    facts = find_model(ModelSpec(str(tmp_path)), None).model.facts
    assert facts.tensors["model.layers.0.self_attn.q_norm.weight"].shape == (4, 8)
    assert {site.name.rpartition(".")[2] for site in facts.sites} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_what_servers_fuse_is_together(tmp_path: Path) -> None:
    facts = find_model(ModelSpec("demo:tiny-llama"), None).model.facts
    fused = {site.name: site.fused_with for site in facts.sites if site.layer == 1}
    layer = "model.layers.1"
    assert fused == {
        f"{layer}.self_attn.q_proj": (f"{layer}.self_attn.k_proj", f"{layer}.self_attn.v_proj"),
        f"{layer}.self_attn.k_proj": (f"{layer}.self_attn.q_proj", f"{layer}.self_attn.v_proj"),
        f"{layer}.self_attn.v_proj": (f"{layer}.self_attn.k_proj", f"{layer}.self_attn.q_proj"),
        f"{layer}.self_attn.o_proj": (),
        f"{layer}.mlp.gate_proj": (f"{layer}.mlp.up_proj",),
        f"{layer}.mlp.up_proj": (f"{layer}.mlp.gate_proj",),
        f"{layer}.mlp.down_proj": (),
    }


def test_of_latent_attention_the_first_projections_are_fused() -> None:
    names = [f"model.layers.0.self_attn.{n}" for n in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")]
    sites = with_fused(Site(n, f"{n}.weight", None, False, 8, 8, 0, role(n)) for n in names)
    assert [site.fused_with for site in sites] == [(names[2],), (), (names[0],), ()]


@pytest.mark.parametrize(
    ("block", "fused"),
    [
        ("linear_attn", ["in_proj_qkv", "in_proj_z"]), ("linear_attn", ["in_proj_b", "in_proj_a"]),  # Qwen3.5
        ("linear_attn", ["q_proj", "k_proj", "v_proj", "g_proj"]),  # OLMo Hybrid
        ("self_attn", ["q_proj", "k_proj", "v_proj"]),
    ],
)  # fmt: skip
def test_of_gated_delta_networks_vllm_joins_the_first_projections(block: str, fused: list[str]) -> None:
    others = {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "q_proj", "k_proj", "v_proj", "g_proj", "o_proj"}
    names = [f"model.layers.0.{block}.{n}" for n in (*fused, *sorted(others - {*fused}))]
    sites = with_fused(Site(n, f"{n}.weight", None, False, 8, 8, 0, role(n)) for n in names)
    assert {names[0], *sites[0].fused_with} == {f"model.layers.0.{block}.{n}" for n in fused}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj", "q"), ("transformer.h.3.attn.c_attn", "qkv"),
        ("transformer.h.3.attn.c_proj", "o"), ("transformer.h.3.mlp.c_proj", "down"),
        ("model.layers.2.mlp.experts.7.gate_proj", "expert_gate"), ("model.layers.2.mlp.gate", "router"),
        ("lm_head", "head"), ("model.embed_tokens", "embedding"), ("model.layers.0.input_layernorm", "norm"),
        ("transformer.ln_f", "norm"), ("model.layers.0.conv.conv", "conv"), ("mtp.layers.0.self_attn.q_proj", "mtp"),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj", "vision"), ("model.layers.0.altup.scale", "other"),
    ],
)  # fmt: skip
def test_roles(name: str, expected: str) -> None:
    assert role(name) == expected
