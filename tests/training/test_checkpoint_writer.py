"""A trained model on disk: what was trained is new, all else has its old bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runner.errors import StepFailed
from runner.steps.trained_checkpoint import target
from runner.training import checkpoint_writer
from tests.host import Host
from tests.tiny import save


def host(tmp_path: Path, source: Path, **params: Any) -> Host:
    return Host(tmp_path / "step", "prune.magnitude", source, **params)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "opt", "gemma3_text"])
def test_trained_parameters_are_rounded_once_and_the_rest_keeps_its_bytes(tmp_path: Path, name: str) -> None:
    source = save(tmp_path / "model", name, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    trained = {
        key: parameter.detach() + 0.01 * torch.randn(parameter.shape, generator=generator)
        for key, parameter in model.named_parameters()
        if parameter.ndim == 2
    }
    save_file(trained, tmp_path / "trained.safetensors")
    step = host(tmp_path, source, max_shard_size="20KB")
    checkpoint_writer.write(source, tmp_path / "trained.safetensors", target(step))
    again = AutoModelForCausalLM.from_pretrained(step.out_dir, dtype="auto")
    assert again.dtype == torch.bfloat16
    for key, parameter in again.named_parameters():
        wanted = trained[key] if key in trained else model.get_parameter(key)
        assert torch.equal(parameter, wanted.to(torch.bfloat16)), key
    assert (step.out_dir / "model.safetensors.index.json").exists()
    assert (step.out_dir / "README.md").read_text().startswith("---\n")


def test_a_tied_head_that_is_stored_too_follows_its_embedding(tmp_path: Path) -> None:
    source = save(tmp_path / "model", "llama_tied")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    new = tensors["model.embed_tokens.weight"] + 1
    step = host(tmp_path, source)
    checkpoint_writer.write(source, {"model.embed_tokens.weight": new}, target(step))
    written = load_file(step.out_dir / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], new)
    assert torch.equal(written["model.embed_tokens.weight"], new)


def test_equal_weights_give_equal_bytes_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / "model")
    trained = {"model.norm.weight": torch.full((32,), 0.5)}
    step = host(tmp_path, source)
    checkpoint_writer.write(source, trained, target(step))
    first = {path.name: path.read_bytes() for path in step.out_dir.iterdir()}
    checkpoint_writer.write(source, trained, target(step))
    assert {path.name: path.read_bytes() for path in step.out_dir.iterdir()} == first


def test_an_unknown_parameter_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "model")
    with pytest.raises(StepFailed) as caught:
        checkpoint_writer.write(source, {"model.nothing.weight": torch.zeros(1)}, target(host(tmp_path, source)))
    assert str(caught.value) == f"the trained parameter `model.nothing.weight` is not in {source}"


def test_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "model")
    value = torch.ones(32)
    value[5] = torch.nan
    with pytest.raises(StepFailed) as caught:
        checkpoint_writer.write(source, {"model.norm.weight": value}, target(host(tmp_path, source)))
    assert str(caught.value) == "`model.norm.weight` in the trained weights holds 1 NaN value, the first at [5]"
