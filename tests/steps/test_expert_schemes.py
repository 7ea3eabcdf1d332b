"""Mixtures whose experts are stored as 8-bit floats, against transformers' own reading and rounding of inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from runner.contracts.facts import CheckpointFacts
from runner.model.architecture import inspect
from runner.model.checkpoint.reader import CheckpointReader
from runner.plan.resolve_inputs import described
from tests import model_types
from tests.steps.test_experts import answers, apply, refusals
from tests.sweep import IDS

__all__ = ["answers"]

WIDE = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 128, "head_dim": 64,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}  # fmt: skip


def saved(folder: Path, model_type: str = "qwen3_moe", **other: Any) -> CheckpointFacts:
    """A random mixture in float32 whose matrices have multiples of 128 rows and columns."""
    torch.manual_seed(0)
    config = model_types.config(model_type)
    for key, value in (WIDE | other).items():
        if hasattr(config, key):
            setattr(config, key, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return described(inspect.facts(folder, "model"), folder)


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """x in 8-bit floats with a scale for each `group` of columns."""
    parts = x.unflatten(-1, (-1, group))
    scale = (parts.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-30)
    nearest: torch.Tensor = (parts / scale).to(torch.float8_e4m3fn).float() * scale
    return nearest.flatten(-2)


def served(folder: Path, packed: Mapping[str, Any], group: int) -> float:
    """The perplexity of IDS by transformers, with the inputs of packed linears and of all experts rounded."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def experts(module: Any, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        every = []
        for gate_up, down in zip(module.gate_up_proj, module.down_proj, strict=True):
            inner = module._apply_gate(functional.linear(rounded(hidden, group), gate_up))
            every.append(functional.linear(rounded(inner, group), down))
        weights = torch.zeros(len(hidden), len(every)).scatter_add_(1, chosen, shares.float())
        out: torch.Tensor = torch.einsum("etd,te->td", torch.stack(every), weights)
        return out

    ALL_EXPERTS_FUNCTIONS["rounded"] = experts
    model.set_experts_implementation("rounded")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name in packed:
            module.register_forward_pre_hook(lambda module, args: (rounded(args[0], group),))
    total = 0.0
    with torch.no_grad():
        for ids in IDS.split(24):
            logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
            total += functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").item()
    del ALL_EXPERTS_FUNCTIONS["rounded"]
    return math.exp(total / (IDS.numel() - len(IDS)))


def names(facts: CheckpointFacts) -> set[str]:
    return {site.name for site in facts.sites}


@pytest.mark.parametrize(("kind", "params"), [
    ("quantize.gptq", {"scheme": "fp8_block", "format": "fp8"}),
    ("quantize.rtn", {"scheme": "fp8", "format": "float-quantized"}),
])  # fmt: skip
def test_experts_are_measured_as_servers_compute_them(tmp_path: Path, kind: str, params: Mapping[str, Any]) -> None:
    group = 128  # as wide as a token here
    facts = saved(tmp_path / "model")
    ids = IDS[:24] if kind == "quantize.gptq" else None
    own = {**params, "ignore": ["o_proj"]}
    apply(facts, tmp_path / "step", kind, ids, **own)
    out = tmp_path / "step" / "out"
    made = described(inspect.facts(out, "made"), out)
    assert names(made) == names(facts)
    streamed = apply(made, tmp_path / "measured", "evaluate.perplexity", IDS).metrics["perplexity"]
    packed = {name for name in names(facts) if not name.endswith("o_proj")}
    assert streamed == pytest.approx(served(out, dict.fromkeys(packed), group), rel=1e-5)
    assert streamed != pytest.approx(served(tmp_path / "model", {}, 16), rel=1e-4)


@pytest.mark.parametrize(("model_type", "params"), [
    ("mixtral", {"scheme": "fp8_block", "format": "fp8"}),
    ("qwen2_moe", {"scheme": "fp8", "format": "float-quantized"}),
    ("qwen2_moe", {"scheme": "w4afp8", "group_size": 32, "format": "pack-quantized"}),
])  # fmt: skip
def test_transformers_reads_the_weights_of_experts(tmp_path: Path, model_type: str, params: Mapping[str, Any]) -> None:
    facts = saved(tmp_path / "model", model_type, shared_expert_intermediate_size=128)
    apply(facts, tmp_path / "step", "quantize.rtn", None, **params)
    out = tmp_path / "step" / "out"
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with CheckpointReader(out) as reader:
        for mixture in facts.linears.mixtures:
            experts: Any = model.get_submodule(mixture.name)
            for expert in range(mixture.experts):
                *first, last = (reader.read_module_weight(name).float() for name in mixture.sites(expert))
                assert torch.equal(experts.gate_up_proj[expert], torch.cat(first))
                assert torch.equal(experts.down_proj[expert], last)


def test_experts_that_stay_are_named_as_readers_have_them(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    apply(facts, tmp_path / "step", "quantize.rtn", None, scheme="fp8_block", format="fp8",
          ignore=["*.experts.*"])  # fmt: skip
    out = tmp_path / "step" / "out"
    left = json.loads((out / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert {"model.layers.0.mlp.experts", "model.layers.1.mlp.experts", "lm_head"} <= set(left)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for mixture in facts.linears.mixtures:
        both = (each.get_submodule(mixture.name) for each in (model, dense))
        assert all(torch.equal(a, b) for a, b in zip(*(each.parameters() for each in both), strict=True))


def test_what_the_plan_says_of_rounded_inputs(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model")
    first = "model.layers.0.mlp.experts.0.down_proj"
    remedy = "serve the result with vLLM, or choose a scheme of weights alone, such as `w4a16`"
    for format, where in (("fp8", " on machines whose GPU has no 8-bit floats"), ("float-quantized", "")):
        message = (
            f"transformers will not round the inputs of experts such as `{first}`, nor those of other modules{where}: "
            "it unpacks the weights of this mixture as it loads them. vLLM and evaluations here round them"
        )
        scheme = "fp8_block" if format == "fp8" else "fp8"
        assert refusals(facts, "quantize.gptq", scheme=scheme, format=format) == [("R657", message, remedy)]
    found = refusals(facts, "quantize.gptq", scheme="fp8_block", format="fp8", ignore=["experts.1.up_proj"])
    left = "`model.layers.0.mlp.experts.1.up_proj` stays dense"
    message = f"readers of `fp8` have one module for all experts of a layer, and {left}"
    assert found[0] == ("R413", message, "leave out all of them, or none")
    found = refusals(facts, "quantize.gptq", scheme="fp8_block", format="float-quantized")
    what = "transformers can only load packed experts of a mixture that it unpacks"
    assert found == [("R413", f"{what}, and of experts it does not read the scales of blocks", "use `format: fp8`")]
