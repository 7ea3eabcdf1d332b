"""`transform.smooth`: the function stays, by transformers' own forward; the scales are SmoothQuant's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import Interrupted, StepFailed
from runner.model.architecture.inspect import facts
from runner.steps.kinds import find
from tests.steps.transform.checkpoints import digests, distance, logits, save, step
from tests.tiny import tokens

PROJECTIONS = {"q_proj", "k_proj", "v_proj"}
LLAMA = {*PROJECTIONS, "o_proj", "gate_proj", "up_proj", "down_proj"}
SMOOTH = find("transform.smooth")


@pytest.mark.parametrize(
    ("name", "smoothed"),
    [
        ("llama", LLAMA),
        ("qwen3", LLAMA),  # norms on queries and keys
        ("gemma2", LLAMA),  # 1 + w, norms after blocks
        ("gemma3_text", LLAMA),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),  # fused projections
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),  # LayerNorm, Conv1D; GELU keeps the second c_proj out
        ("opt", {*PROJECTIONS, "out_proj", "fc1", "fc2"}),  # LayerNorm; a ReLU passes scales on
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h"}),  # blocks side by side, each with a norm
        ("cohere", LLAMA),  # blocks side by side behind one norm
        ("olmo2", {"o_proj", "down_proj"}),  # no norm before blocks
    ],
)
def test_the_function_stays(name: str, smoothed: set[str], tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", name), tokens()
    host = step(tmp_path / "step", "transform.smooth", folder, alpha=0.7)
    result = SMOOTH.run(host)
    assert distance(logits(folder, ids), logits(host.out_dir, ids)) < 1e-5
    assert result.metrics["divergence"] < 1e-5
    [first, *_] = result.details["layers"]
    assert smoothed >= {site.rpartition(".")[2] for site in first["modules"]} >= smoothed - {"up_proj", "gate_proj"}
    before, after = (load_file(path / "model.safetensors") for path in (folder, host.out_dir))
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for layer in result.details["layers"] for key in layer["changed"]}
    assert all(before[key].dtype == after[key].dtype for key in before)
    assert (host.out_dir / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_the_scales_are_those_of_the_paper(tmp_path: Path) -> None:
    """A norm's weight over its new one is max|x|^α ∕ max|w|^(1−α), from what transformers computes."""
    from transformers import AutoModelForCausalLM

    folder = save(tmp_path / "model", "llama")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    block = model.model.layers[0]
    seen: list[torch.Tensor] = []
    block.self_attn.q_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=tokens(), use_cache=False)
    largest = seen[0].abs().flatten(0, 1).amax(0)
    weights = [getattr(block.self_attn, f"{letter}_proj").weight for letter in "qkv"]
    expected = largest**0.6 / torch.stack([w.abs().amax(0) for w in weights]).amax(0) ** 0.4
    host = step(tmp_path / "step", "transform.smooth", folder, alpha=0.6, linears=False)
    SMOOTH.run(host)
    after = load_file(host.out_dir / "model.safetensors")
    name = "model.layers.0.input_layernorm.weight"
    torch.testing.assert_close(block.input_layernorm.weight / after[name], expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_of_one_plus_w_costs_no_more_than_rounding_weights(tmp_path: Path) -> None:
    """(1 + w) ∕ s near zero has few bits as w: the scales follow what is stored."""
    folder = save(tmp_path / "model", "gemma2", torch.bfloat16)
    host = step(tmp_path / "step", "transform.smooth", folder, alpha=1.0)
    result = SMOOTH.run(host)
    assert result.metrics["divergence"] < 1e-5
    assert result.metrics["rounding"] < 0.02
    assert distance(logits(folder, tokens()), logits(host.out_dir, tokens())) < 0.02


def test_ignored_sites_and_overrides(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    host = step(
        tmp_path / "step", "transform.smooth", folder,
        ignore=["*.0.*.k_proj", "down_proj"], overrides={"gate_proj": {"alpha": 0.2}, "layers.2.*": {"alpha": 0.3}},
    )  # fmt: skip
    layers = SMOOTH.run(host).details["layers"]
    names = [{site.rpartition(".")[2] for site in layer["modules"]} for layer in layers]
    # k keeps q and v as they are; gate and up have one input and two alphas, but in layer 2
    assert names == [{"o_proj"}, {*PROJECTIONS, "o_proj"}, {*PROJECTIONS, "o_proj", "gate_proj", "up_proj"}]


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "qwen3", torch.bfloat16)
    whole = step(tmp_path / "whole", "transform.smooth", folder)
    SMOOTH.run(whole)
    stopped = step(tmp_path / "stopped", "transform.smooth", folder, stop_after=1)
    with pytest.raises(Interrupted):
        SMOOTH.run(stopped)
    again = step(tmp_path / "stopped", "transform.smooth", folder)
    SMOOTH.run(again)
    assert again.layers() == [2, 3]
    assert digests(whole.out_dir) == digests(again.out_dir)


def test_a_layer_that_diverges_fails_the_step(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    host = step(tmp_path / "step", "transform.smooth", folder, tolerance=1e-12)
    with pytest.raises(StepFailed) as caught:
        SMOOTH.run(host)
    found = str(caught.value).partition("share of ")[2].partition(",")[0]
    assert str(caught.value) == (
        f"rewritten, `model.layers.0` would not compute what the original does: the outputs differ by a share of "
        f"{found}, more than `tolerance` 1e-12"
    )
    assert caught.value.help == "raise `tolerance` if that is acceptable, or leave the step out"


def test_float16_that_overflows_fails_the_step(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", torch.float16)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    wide = tensors[name].float()
    tensors[name] = (wide * (60_000 / wide.abs().max())).half()
    tensors["model.layers.0.input_layernorm.weight"] *= 1e4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    host = step(tmp_path / "step", "transform.smooth", folder, alpha=1.0)
    with pytest.raises(StepFailed) as caught:
        SMOOTH.run(host)
    assert str(caught.value) == f"`{name}` is stored as float16, which does not hold its new values"


def test_zeros_of_a_pruned_checkpoint_stay(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    pruned = step(tmp_path / "pruned", "prune.magnitude", folder, sparsity=0.5)
    find("prune.magnitude").run(pruned)
    host = step(tmp_path / "step", "transform.smooth", pruned.out_dir)
    SMOOTH.run(host)
    before, after = (load_file(path / "model.safetensors") for path in (pruned.out_dir, host.out_dir))
    assert all(torch.equal(before[key] == 0, after[key] == 0) for key in before)


def test_the_planned_changes_hold_what_changes(tmp_path: Path) -> None:
    from runner.contracts.step_kind import DataFacts, Inputs
    from runner.plan.machine import machine_facts
    from runner.plan.resolve_inputs import described

    folder = save(tmp_path / "model", "opt")
    host = step(tmp_path / "step", "transform.smooth", folder)
    result = SMOOTH.run(host)
    inputs = Inputs(
        described(facts(folder, str(folder)), folder),
        {},
        {"data": DataFacts("d", 6, 24, 999, "0")},
        machine_facts("cpu"),
    )
    planned = SMOOTH.changes(host.params, inputs)  # type: ignore[attr-defined]  # optional in a kind
    assert result.account is not None
    assert {name for name, fate in result.account.fates.items() if fate.fate == "changed"} <= planned
    assert SMOOTH.check(host.params, inputs) == []
    shutil.rmtree(host.out_dir)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "opt"
