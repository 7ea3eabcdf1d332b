"""Adapters of experts: outputs and gradients are those of peft's own wrapper, whose modules are all that are named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import transformers_weight_conversion
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from runner.model.checkpoint import adapter_config
from runner.model.layerwise.expert_stream import runs_one_by_one
from runner.training.modules import lora
from runner.training.modules.expert_lora import ExpertBranch
from tests import model_types
from tests.sweep import IDS


def model(model_type: str) -> Any:
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_config(model_types.config(model_type), experts_implementation="eager").double()
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.15)
    return found


def parameters(found: nn.Module, keys: tuple[str, ...] = ("gate_up_proj", "up_proj", "down_proj")) -> list[str]:
    experts = [(name, module) for name, module in found.named_modules() if runs_one_by_one(module)]
    return [f"{name}.{key}" for name, module in experts for key in keys if key in module._parameters]


def started(found: Any) -> Any:
    torch.manual_seed(1)
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) * 0.2
    return found


def gradients(found: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = found(input_ids=IDS[:2], use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), {name: each.grad for name, each in found.named_parameters() if each.grad is not None}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("mixtral", ("gate_up_proj", "down_proj")),
        ("gpt_oss", ("gate_up_proj", "down_proj")),  # transposed, with biases, gate and up alternating
        ("gpt_oss", ("down_proj",)),
        ("nemotron_h", ("up_proj", "down_proj")),  # without a gate
        ("granitemoe", ("gate_up_proj",)),
    ],
)
def test_outputs_and_gradients_are_peft_s(model_type: str, keys: tuple[str, ...]) -> None:
    base = model(model_type)
    config = adapter_config.config(2, 4, [], parameters=parameters(base, keys))
    theirs = get_peft_model(copy.deepcopy(base), LoraConfig(
        r=2, lora_alpha=4, target_modules=[], target_parameters=config["target_parameters"],
    ), autocast_adapter_dtype=False)  # fmt: skip
    expected, slopes = gradients(started(theirs))
    ours = started(lora.wrap(copy.deepcopy(base), config).double())
    assert sum(isinstance(module, ExpertBranch) for module in ours.modules()) == len(config["target_parameters"])
    assert not any(isinstance(module, ParamWrapper) for module in ours.modules())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    logits, found = gradients(ours)
    assert not torch.allclose(logits, base(input_ids=IDS[:2]).logits, atol=1e-2)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-7)
    assert found.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope, rtol=1e-5, atol=1e-8, msg=name)


def test_pruned_experts_act_under_their_mask() -> None:
    base = model("mixtral")
    experts = base.model.layers[0].mlp.experts
    with torch.no_grad():
        experts.gate_up_proj[1, :, ::2] = 0
        experts.down_proj[2, 3] = 0
    names = parameters(base)
    ours = started(lora.wrap(copy.deepcopy(base), adapter_config.config(2, 4, [], parameters=names)).double())
    branches = [module for module in ours.modules() if isinstance(module, ExpertBranch)]
    assert sorted((each.parameter_name, each.masked) for each in branches if any(each.masked)) == [
        ("down_proj", [False, False, True, False]), ("gate_up_proj", [False, True, False, False]),
    ]  # fmt: skip
    logits, _ = gradients(ours)
    for branch in branches:  # the same model, merged by hand
        a, b = branch.factors()
        weights = dict(base.named_parameters())
        with torch.no_grad():
            owner = next(name for name, each in ours.named_modules() if each is branch.experts)
            name = owner.removeprefix(adapter_config.PREFIX).replace(".base_layer", "")
            for weight, left, right in zip(weights[f"{name}.{branch.parameter_name}"], b, a, strict=True):
                pruned = weight == 0 if float((weight == 0).double().mean()) > 0.01 else torch.zeros_like(weight) > 0
                weight += branch.scale * left @ right
                weight.masked_fill_(pruned, 0)
    torch.testing.assert_close(logits, base(input_ids=IDS[:2]).logits, rtol=1e-9, atol=1e-9)


def test_types_whose_modules_peft_takes_for_experts() -> None:
    """peft's own table, as far as it is about types of models that have a configuration."""
    peft: Any = transformers_weight_conversion
    table = peft._MODEL_TO_CONVERSION_PATTERN
    found = {each for each, pattern in table.items() if pattern == "qwen2_moe" and each in CONFIG_MAPPING}
    assert found <= adapter_config.RENAMED_TYPES
    assert {pattern for each, pattern in table.items() if each in adapter_config.RENAMED_TYPES} == {"qwen2_moe"}
    assert set(peft._MOE_TARGET_MODULE_MAPPING["qwen2_moe"]) == {
        "gate_proj", "up_proj", "down_proj", "gate",
    }  # fmt: skip


def test_modules_beside_experts_get_their_adapters() -> None:
    base = model("deepseek_v3")
    linears = [name for name, module in base.named_modules() if type(module) is nn.Linear and ".mlp." in name]
    assert any("shared_experts" in name for name in linears)
    ours = lora.wrap(base, adapter_config.config(2, 4, linears, parameters=parameters(base)))
    assert base.config.model_type == "deepseek_v3"
    adapted = {name.removeprefix(adapter_config.PREFIX) for name, module in ours.named_modules()
               if isinstance(module, lora.Branch)}  # fmt: skip
    assert adapted == set(linears)
