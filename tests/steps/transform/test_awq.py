"""`transform.awq`: the function stays, and rounding errs less afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps.kinds import find
from tests.steps.transform.checkpoints import digests, distance, logits, save, step
from tests.tiny import tokens

AWQ: Any = find("transform.awq")
W3: dict[str, Any] = {"bits": 3, "group_size": 16}
W4: dict[str, Any] = {"bits": 4, "group_size": 32}


def uneven(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint in which some channels of inputs are far larger than others, as in real models."""
    from safetensors.torch import save_file

    save(folder, name, dtype)
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in tensors.items():
        if "layernorm" in key:
            tensor[::8] *= 8
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rounded(folder: Path, checkpoint: Path, kind: str = "quantize.rtn", **params: Any) -> torch.Tensor:
    host = step(folder, kind, checkpoint, **params)
    find(kind).run(host)
    return logits(host.out_dir, tokens())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "phi3", "gpt2", "opt", "gpt_neox", "cohere"])
def test_the_function_stays(name: str, tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", name), tokens()
    host = step(tmp_path / "step", "transform.awq", folder, **W3)
    result = AWQ.run(host)
    assert distance(logits(folder, ids), logits(host.out_dir, ids)) < 1e-5
    assert result.metrics["divergence"] < 1e-5
    modules = [module for layer in result.details["layers"] for module in layer["modules"].values()]
    assert all(module["error"] <= module["error_before"] for module in modules)


def test_rounding_errs_less_afterwards(tmp_path: Path) -> None:
    folder = uneven(tmp_path / "model", "llama")
    dense = logits(folder, tokens())
    host = step(tmp_path / "step", "transform.awq", folder, **W4)
    clipped = step(tmp_path / "clipped", "transform.awq", folder, clip=True, **W4)
    AWQ.run(host)
    AWQ.run(clipped)
    plain = distance(dense, rounded(tmp_path / "plain", folder, **W4))
    scaled = distance(dense, rounded(tmp_path / "scaled", host.out_dir, **W4))
    both = distance(dense, rounded(tmp_path / "both", clipped.out_dir, **W4))
    assert scaled < 0.9 * plain, (plain, scaled, both)
    assert both < scaled


def test_the_error_is_that_of_the_block_with_rounded_weights(tmp_path: Path) -> None:
    """What the record says of the group of gate and up is what transformers' own block computes."""
    from transformers import AutoModelForCausalLM

    folder = uneven(tmp_path / "model", "llama")
    host = step(tmp_path / "step", "transform.awq", folder, ignore=["down_proj"], **W3)
    modules = AWQ.run(host).details["layers"][0]["modules"]
    seen: list[torch.Tensor] = []
    blocks = []
    for path in (folder, host.out_dir):
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        block = model.model.layers[0].mlp
        handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            states = model(input_ids=tokens(), use_cache=False, output_hidden_states=True).hidden_states
        weigh = 1 / states[1].square().sum(-1)  # tokens by their size in the output of layer 0
        handle.remove()
        blocks.append(block)
    outputs, errors = [], []
    for block, inputs in zip(blocks, seen, strict=True):
        with torch.no_grad():
            outputs.append(block(inputs))
            for linear in (block.gate_proj, block.up_proj):
                groups = linear.weight.data.unflatten(1, (-1, 16))
                scale = groups.abs().amax(2, keepdim=True) * (1 / 3.5)  # the largest weight is a tie
                linear.weight.data = ((groups / scale).round().clamp(-4, 3) * scale).flatten(1)
            change = (block(inputs) - outputs[-1]).square().sum(-1)
            errors.append(float((change * weigh).sum() / (outputs[-1].square().sum(-1) * weigh).sum()))
    site = modules["model.layers.0.mlp.gate_proj"]
    assert site["error_before"] == pytest.approx(errors[0], rel=1e-3)
    assert site["error"] == pytest.approx(errors[1], rel=0.1)  # ties fall either way
    assert site["error"] < site["error_before"]


def test_schemes_that_round_inputs_are_searched_with_rounded_inputs(tmp_path: Path) -> None:
    folder = uneven(tmp_path / "model", "llama")
    dense = logits(folder, tokens())
    host = step(tmp_path / "step", "transform.awq", folder, scheme="w8a8")
    AWQ.run(host)
    before, after = (load_file(path / "model.safetensors") for path in (folder, host.out_dir))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert distance(dense, logits(host.out_dir, tokens())) < 1e-5


def test_clipping_leaves_queries_keys_and_ignored_modules(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    params = {**W3, "ignore": ["q_proj", "o_proj", "gate_proj", "down_proj"]}
    host = step(tmp_path / "step", "transform.awq", folder, clip=True, **params)
    AWQ.run(host)
    before, after = (load_file(path / "model.safetensors") for path in (folder, host.out_dir))
    moved = {key.split(".")[-2] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"v_proj", "up_proj"}


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "gemma2", torch.bfloat16)
    whole = step(tmp_path / "whole", "transform.awq", folder, clip=True, **W3)
    AWQ.run(whole)
    stopped = step(tmp_path / "stopped", "transform.awq", folder, 1, clip=True, **W3)
    with pytest.raises(Interrupted):
        AWQ.run(stopped)
    again = step(tmp_path / "stopped", "transform.awq", folder, clip=True, **W3)
    AWQ.run(again)
    assert again.layers() == [2, 3]
    assert digests(whole.out_dir) == digests(again.out_dir)


def test_a_scheme_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    data = {"data": DataFacts("d", 6, 24, 999, "0")}
    inputs = Inputs(facts(folder, "m"), {}, data, machine_facts("cpu"))
    params = defaults("transform.awq", {"data": "d", "scheme": "w8a8", "bits": 4})
    [found] = AWQ.check(params, inputs)
    with pytest.raises(ValueError, match=r".+") as caught:
        AWQ.scheme(params)
    assert (found.code, found.message, found.help) == ("R422", str(caught.value), "leave one of them out")


def test_groups_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    data = {"data": DataFacts("d", 6, 24, 999, "0")}
    inputs = Inputs(facts(folder, "m"), {}, data, machine_facts("cpu"))
    params = defaults("transform.awq", {"data": "d", "group_size": 64})
    [found] = AWQ.check(params, inputs)
    assert (found.code, found.help) == ("R411", "use group_size 16 or 32")
    assert AWQ.check({**params, "ignore": ["gate_proj", "up_proj", "self_attn.*"]}, inputs) == []
    assert AWQ.check(defaults("transform.awq", {"data": "d", "scheme": "w8a8"}), inputs) == []
