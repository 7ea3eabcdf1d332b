"""`quantize.signround`: what it asks of the stream, what it learns, on every scheme, and that it ends the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts.context import DataFacts
from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted
from runner.model.architecture.inspect import facts
from runner.model.layerwise import calibrated
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps.kinds import find
from runner.steps.quantize import signround
from tests.host import Host
from tests.model.layerwise.test_engine import digests
from tests.model.layerwise.test_final_hidden import plain_logits, streamed_logits
from tests.tiny import save, tokens

SMALL: dict[str, Any] = {"group_size": 16, "bits": 3, "steps": 24}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches of the few tokens of a test."""
    monkeypatch.setattr("runner.model.layerwise.hidden_states.batch_tokens", lambda device, widest: 32)


def learned(tmp_path: Path, name: str, checkpoint: Path, **params: Any) -> Host:
    host = Host(tmp_path / name, "quantize.signround", checkpoint, tokens(), **{**SMALL, **params})
    find("quantize.signround").run(host)
    return host


def errors(host: Host) -> list[tuple[float, float]]:
    """The error of each layer, before and after learning."""
    return [(e["error_before"], e["error"]) for e in host.events if e["event"] == "layer"]


@pytest.mark.parametrize(
    ("params", "statistic"),
    [
        ({}, "hessian"),
        ({"bits": 3}, "cross"),
        ({"start": "rounding"}, "input_norms"),
        ({"start": "rounding", "grid": "mse"}, "none"),
    ],
)
def test_the_start_decides_what_is_collected(params: dict[str, Any], statistic: str) -> None:
    assert signround.wanted(defaults("quantize.signround", {"data": "text", **params})) == statistic


ROUNDED = ({"start": "rounding"}, {"start": "rounding", "grid": "minmax"})


@pytest.mark.parametrize("params", [{}, *(pytest.param(each, marks=pytest.mark.nightly) for each in ROUNDED)], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2"])
def test_layers_are_learned_on_every_architecture(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name)
    extra: dict[str, Any] = {"format": "gptq"} if name == "gpt2" else {}
    host = learned(tmp_path, "step", folder, **params, **extra)
    found = errors(host)
    assert len(found) == 3
    assert all(after <= before for before, after in found)
    assert sum(after for _, after in found) < 0.97 * sum(before for before, _ in found)
    dense = plain_logits(folder, tokens(), torch.float32)
    assert (streamed_logits(host.out_dir, tokens(), tmp_path / "scratch") - dense).abs().mean() < 0.5 * dense.std()


@pytest.mark.parametrize(
    "params",
    [
        {"scheme": "w4a16", "group_size": 16, "symmetric": False},
        {"scheme": "w8a8"},
        {"scheme": "fp8", "activations": "static"},
        {"scheme": "nvfp4a16"},
        {"scheme": "mxfp4a16"},
        {"scheme": "nf4"},
        {"scheme": "log2"},
        {"scheme": "fp8_block", "ignore": ["*q_proj", "*k_proj", "*v_proj", "*gate_proj", "*up_proj"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("start", ["gptq", pytest.param("rounding", marks=pytest.mark.nightly)])
def test_every_scheme_is_learned(params: dict[str, Any], start: str, tmp_path: Path) -> None:
    wide: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    folder = save(tmp_path / "model", "llama", dtype=torch.bfloat16, **wide)
    host = Host(tmp_path / "step", "quantize.signround", folder, tokens(), start=start, steps=8, **params)
    find("quantize.signround").run(host)
    assert all(after <= before for before, after in errors(host))
    dense = plain_logits(folder, tokens(), torch.float32)
    limit = 0.6 if params["scheme"] == "log2" else 0.4  # rounding to powers of two alone is off by 0.66
    assert (streamed_logits(host.out_dir, tokens(), tmp_path / "scratch") - dense).abs().mean() < limit * dense.std()


def test_weights_that_were_pruned_stay_zero(tmp_path: Path) -> None:
    from runner.model.checkpoint.reader import CheckpointReader

    folder = save(tmp_path / "model", "llama")
    pruned = Host(tmp_path / "pruned", "prune.wanda", folder, tokens(), pattern="2:4")
    find("prune.wanda").run(pruned)
    host = learned(tmp_path, "step", pruned.out_dir)
    with CheckpointReader(host.out_dir) as reader, CheckpointReader(pruned.out_dir) as before:
        for name in ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"):
            zeros = before.read_module_weight(name) == 0
            assert zeros.any()
            assert not reader.read_module_weight(name)[zeros].any()


def test_two_runs_and_both_ways_to_run_a_layer_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", "qwen3", dtype=torch.bfloat16)
    one = learned(tmp_path, "one", folder)
    two = learned(tmp_path, "two", folder)
    monkeypatch.setattr(calibrated, "suspend_limit", lambda device_memory: 0)
    again = learned(tmp_path, "again", folder)
    assert digests(one.out_dir) == digests(two.out_dir) == digests(again.out_dir)


def test_an_interrupted_step_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    whole = learned(tmp_path, "whole", folder)
    stopped = Host(tmp_path / "parts", "quantize.signround", folder, tokens(), stop_after=1, **SMALL)
    with pytest.raises(Interrupted):
        find("quantize.signround").run(stopped)
    resumed = learned(tmp_path, "parts", folder)
    assert resumed.layers() == [2, 3]
    assert digests(resumed.out_dir) == digests(whole.out_dir)


def test_the_seed_decides_the_order_of_batches(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    hosts = [Host(tmp_path / str(seed), "quantize.signround", folder, tokens(), **SMALL) for seed in (0, 1)]
    for seed, host in enumerate(hosts):
        host.seed = seed
        find("quantize.signround").run(host)
    assert digests(hosts[0].out_dir)["model.safetensors"] != digests(hosts[1].out_dir)["model.safetensors"]


def test_without_steps_the_start_is_kept(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    host = learned(tmp_path, "none", folder, steps=0)
    start = Host(tmp_path / "gptq", "quantize.gptq", folder, tokens(), group_size=16, bits=3)
    find("quantize.gptq").run(start)
    assert digests(host.out_dir)["model.safetensors"] == digests(start.out_dir)["model.safetensors"]


def test_the_forecast_is_of_one_layer_however_many_there_are(tmp_path: Path) -> None:
    data = {"data": DataFacts("d", 8, 24, 10_000, "0")}
    costs = []
    for layers in (2, 8):
        given = facts(save(tmp_path / str(layers), "llama", num_hidden_layers=layers), "model")
        inputs = Inputs(given, {}, data, machine_facts("cpu"))
        params = defaults("quantize.signround", {"data": "d", **SMALL})
        start = defaults("quantize.gptq", {"data": "d", "bits": 3, "group_size": 16})
        costs.append((signround.estimate(params, inputs), find("quantize.gptq").estimate(start, inputs)))
    (two, gptq), (eight, _) = costs
    assert two.memory == eight.memory > gptq.memory
    assert two.seconds > gptq.seconds
