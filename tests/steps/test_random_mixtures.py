"""Random mixtures, schemes and floors: what becomes of each expert is what its own tokens alone give."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from runner.contracts.facts import CheckpointFacts
from runner.model.architecture import inspect
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.method import Linear, Statistics
from runner.plan.resolve_inputs import described
from runner.recipe.schema.load import defaults
from runner.steps.quantize import gptq
from tests import model_types
from tests.steps.test_experts import answers, apply, called_with
from tests.sweep import IDS

__all__ = ["answers"]

TYPES = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "phimoe", "ernie4_5_moe")


def saved(folder: Path, draw: random.Random) -> CheckpointFacts:
    """A random mixture of a random type: other numbers of experts, of those that a token goes to, and widths."""
    config = model_types.config(draw.choice(TYPES))
    experts = draw.randint(3, 7)
    sizes = {
        **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), experts),
        **dict.fromkeys(("num_experts_per_tok", "moe_k"), draw.randint(1, 2)),
        **dict.fromkeys(("moe_intermediate_size", "intermediate_size"), 8 * draw.randint(1, 6)),
    }
    for key, value in sizes.items():
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, value)
    torch.manual_seed(draw.randint(0, 10**6))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return described(inspect.facts(folder, "model"), folder)


def differing(reader: CheckpointReader, names: tuple[str, ...], expected: torch.Tensor) -> float:
    """The share of codes that are others than expected; of GPTQ sums in another order may flip some."""
    codes = torch.cat([reader.read_quantized(name).codes for name in names])
    return float((codes != expected).float().mean())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 25))])
def test_each_expert_is_what_its_tokens_alone_give(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    facts = saved(tmp_path / "model", draw)
    params: dict[str, Any] = {
        "bits": draw.choice([2, 3, 4, 8]), "group_size": draw.choice([8, "channel"]), "grid": "minmax",
        "experts": draw.choice(["routed", "all"]), "expert_min_tokens": draw.choice([0, 0, 150, 10**6]),
        "asymmetric_calibration": 0,  # what an expert's last matrix sees of the unchanged model is not computed here
        "ignore": sorted(site.name for site in facts.sites if not site.is_expert),
    }  # fmt: skip
    result = apply(facts, tmp_path / "step", "quantize.gptq", IDS[:24], **params)
    hidden, routing, experts = called_with(facts)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    options = defaults("quantize.gptq", {"data": "calibration", **params})
    mixture = facts.linears.mixtures[0]
    modules = result.details["layers"][mixture.layer]["modules"]

    def alone(names: tuple[str, ...], weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        few = len(x) < max(1, params["expert_min_tokens"])
        seen = Statistics() if few else Statistics(len(x), hessian=(2 / len(x) * (x.double().T @ x.double())).float())
        transform = gptq.method.fallback if few else gptq.method.transform
        assert transform is not None
        quantized = transform(Linear(names, weight, torch.float32), seen, options).quantized
        assert quantized is not None
        assert {modules[name]["below_floor"] for name in names} == {int(few)}
        assert differing(reader, names, quantized.codes) < (1e-9 if few else 0.03)
        return torch.cat([reader.read_module_weight(name) for name in names])

    with torch.no_grad(), CheckpointReader(tmp_path / "step" / "out") as reader:
        for expert in range(mixture.experts):
            tokens = (routing == expert).any(-1)
            x = hidden if params["experts"] == "all" else hidden[tokens]
            *first, last = mixture.sites(expert)
            assert modules[last]["tokens"] == int(tokens.sum())
            inner = experts._apply_gate(x @ alone(tuple(first), experts.gate_up_proj[expert].detach(), x).T)
            alone((last,), experts.down_proj[expert].detach(), inner)
