"""What rewrites of layers forecast and plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import RecipeError
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.plan.resolve import resolve
from runner.plan.resolve_inputs import described
from runner.recipe.load import loads
from runner.recipe.schema.load import defaults
from runner.steps.kinds import find
from runner.steps.layer_rewrites import changes, sample_size
from tests import model_types
from tests.tiny import byte_level, save

KINDS = ("transform.smooth", "transform.awq", "transform.rotate")


def inputs(folder: Path) -> Inputs:
    data = {"data": DataFacts("d", 16, 32, 9999, "0")}
    return Inputs(described(facts(folder, "m"), folder), {}, data, machine_facts("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_layers_and_disk_does(kind: str, tmp_path: Path) -> None:
    params = defaults(kind, {} if kind == "transform.rotate" else {"data": "d"})
    costs = [
        find(kind).estimate(params, inputs(save(tmp_path / str(layers), "llama", num_hidden_layers=layers)))
        for layers in (2, 8)
    ]
    assert costs[0].memory == costs[1].memory
    assert costs[0].disk < costs[1].disk
    assert costs[0].scratch < costs[1].scratch
    assert costs[0].seconds < costs[1].seconds


def test_a_sample_is_of_whole_batches(tmp_path: Path) -> None:
    """Batches on a CPU have 2048 tokens where layers are as narrow as here."""
    found = inputs(save(tmp_path / "model", "llama")).checkpoint
    assert sample_size(found, 512, 100_000, "cpu", 1) == 2048
    assert sample_size(found, 512, 100_000, "cpu", 4096) == 4096
    assert sample_size(found, 600, 100_000, "cpu", 4096) == 5400
    assert sample_size(found, 512, 1024, "cpu", 4096) == 1024


def test_a_plan_names_the_linears_and_norms_of_layers(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model", "qwen3"))
    found = changes({}, given)
    assert "model.embed_tokens.weight" not in found
    assert "model.norm.weight" not in found
    inside = {name for name in given.checkpoint.tensors if name.startswith("model.layers.")}
    assert found == inside


@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model_types.config("mixtral")).save_pretrained(tmp_path / "model")
    byte_level(tmp_path / "model")
    (tmp_path / "text.txt").write_text("abc " * 4000, encoding="utf-8")
    params: dict[str, Any] = {} if kind == "transform.rotate" else {"data": "d"}
    text = (
        f"version: 1\nname: r\nmodel: {{source: {tmp_path / 'model'}}}\n"
        f"data: {{d: {{source: {tmp_path / 'text.txt'}, samples: 4, sequence_length: 16}}}}\n"
        f"steps:\n  - {kind}: {str(params).replace(chr(39), '')}\n"
    )
    with pytest.raises(RecipeError) as caught:
        resolve(loads(text, "r.yaml"))
    [found] = [d for d in caught.value.diagnostics if d.severity == "error" and d.code != "R229"]
    assert found.code == "R441"
    assert f"`{kind}` cannot change mixtures yet" in found.message
