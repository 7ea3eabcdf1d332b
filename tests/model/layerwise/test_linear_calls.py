from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from runner.model.architecture import inspect, probe
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import linear_calls
from runner.model.layerwise.describe import describe
from runner.model.layerwise.empty_model import build_empty
from runner.model.layerwise.linear import is_linear
from runner.plan.resolve_inputs import described
from runner.steps import kinds
from tests.host import Host

LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64,
}  # fmt: skip
BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 64,
}  # fmt: skip
FALCON: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
MIXTRAL: dict[str, Any] = {**LLAMA, "num_local_experts": 4}
BERT: dict[str, Any] = {**LLAMA, "is_decoder": True}
IDS = torch.randint(4, 120, (2, 12), generator=torch.Generator().manual_seed(0))


def empty(kind: str, sizes: dict[str, Any]) -> torch.nn.Module:
    model: torch.nn.Module = build_empty(CONFIG_MAPPING[kind](**sizes)).eval()
    return model


def names(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if is_linear(module)}


def test_every_linear_of_a_decoder_is_called() -> None:
    model = empty("llama", LLAMA)
    assert set(linear_calls.called(model) or ()) == names(model)


def test_cross_attention_without_an_encoder_is_not_called() -> None:
    model = empty("bart", BART)
    called = linear_calls.called(model)
    assert called is not None
    assert {name for name in names(model) if ".encoder_attn." in name} == names(model) - set(called) != set()


def test_a_forward_that_depends_on_values_says_nothing() -> None:
    """JetMoE counts the tokens of each expert; experts in transformers' common form are stood in for."""
    model = empty("jetmoe", {**LLAMA, "num_local_experts": 4})
    assert linear_calls.called(model) is None


def test_experts_do_not_hide_what_a_forward_calls() -> None:
    model = empty("mixtral", MIXTRAL)
    assert set(linear_calls.called(model) or ()) == names(model)


@pytest.mark.parametrize(("kind", "sizes", "needed"), [("llama", LLAMA, False), ("falcon", FALCON, True)])
def test_initializers_that_read_weights_are_found(kind: str, sizes: dict[str, Any], needed: bool) -> None:
    model = empty(kind, sizes)
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert linear_calls.needed(model) is needed
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize(("kind", "sizes"), [("bart", BART), ("falcon", FALCON), ("bert", BERT)])
def test_what_transformers_takes_for_packed_is_packed_or_named(
    kind: str, sizes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-attention that is never called, an initializer that needs weights, a head tied under another name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_answer", describe)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes)).save_pretrained(tmp_path / "model")
    facts = described(inspect.facts(tmp_path / "model", "m"), tmp_path / "model")
    host = Host(tmp_path, "quantize.rtn", tmp_path / "model", group_size=8)
    names, linears = tuple(site.name for site in facts.sites), facts.linears
    host.inputs = {"checkpoint": replace(host.inputs["checkpoint"], sites=names, linears=linears)}
    kinds.find("quantize.rtn").run(host)
    packed = AutoModelForCausalLM.from_pretrained(host.out_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = packed(input_ids=IDS).logits
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        assert not torch.equal(logits, dense(input_ids=IDS).logits)
    with CheckpointReader(host.out_dir) as reader, torch.no_grad():
        for site in facts.sites:
            dense.get_parameter(site.tensor).copy_(reader.read_module_weight(site.name))
        torch.testing.assert_close(logits, dense(input_ids=IDS).logits)
