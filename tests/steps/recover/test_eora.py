"""`recover.eora` end to end on tiny models: it comes nearer the dense model, resumes, and peft reads what it writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import SAME, DataFacts, Inputs
from runner.errors import Interrupted, StepFailed
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.report import loading
from runner.runtime.transformers import Transformers
from runner.steps.kinds import find
from tests.host import Host
from tests.tiny import save, tokens

KIND = "recover.eora"


def made(folder: Path, kind: str, checkpoint: Path, **params: Any) -> Path:
    host = Host(folder, kind, checkpoint, None if kind == "quantize.rtn" else tokens(), **params)
    find(kind).run(host)
    return host.out_dir


def recovered(folder: Path, checkpoint: Path, against: Path, stop_after: int | None = None, **params: Any) -> Host:
    others = {"against": against}
    return Host(folder, KIND, checkpoint, tokens(), stop_after, others, **({"rank": 4} | params))


def divergence(folder: Path, checkpoint: Path, against: Path) -> float:
    host = Host(folder, "evaluate.divergence", checkpoint, tokens(), others={"against": against})
    return find("evaluate.divergence").run(host).metrics["kl"]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("llama", ("quantize.rtn", {"bits": 3, "group_size": 16})),
        ("qwen3", ("quantize.gptq", {"bits": 3, "group_size": 16, "asymmetric_calibration": 0})),
        ("gpt2", ("quantize.rtn", {"bits": 3, "group_size": 16, "format": "gptq"})),
        ("gpt2", ("prune.wanda", {"sparsity": 0.5})),
        ("llama", ("prune.magnitude", {"sparsity": 0.5})),
    ],
)
def test_it_comes_nearer_the_dense_model(name: str, compress: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    dense = save(tmp_path / "model", name)
    compressed = made(tmp_path / "compressed", compress[0], dense, **compress[1])
    host = recovered(tmp_path / "eora", compressed, dense)
    result = find(KIND).run(host)
    assert result.metrics["error"] < 0.8 * result.metrics["error_before"]
    assert result.metrics["rank"] == 4
    assert divergence(tmp_path / "after", host.out_dir, dense) < 0.85 * divergence(tmp_path / "b", compressed, dense)
    kept = {file: digest for file, digest in digests(compressed).items() if file not in ("README.md", "config.json")}
    assert kept.items() <= digests(host.out_dir).items()
    layers = [event for event in host.events if event["event"] == "layer"]
    assert [event["layer"] for event in layers] == [1, 2, 3]
    assert all(event["error"] < event["error_before"] for event in layers)


def test_the_full_rank_is_the_dense_model(tmp_path: Path) -> None:
    dense = save(tmp_path / "model", "llama")
    compressed = made(tmp_path / "compressed", "quantize.rtn", dense, bits=2, group_size=16)
    host = recovered(tmp_path / "eora", compressed, dense, rank=16, ignore=["lm_head"])
    find(KIND).run(host)
    small = divergence(tmp_path / "small", host.out_dir, dense)
    host = recovered(tmp_path / "full", compressed, dense, rank=32, ignore=["k_proj", "v_proj"])
    result = find(KIND).run(host)
    assert result.metrics["error"] < 1e-6
    assert small < 0.5 * divergence(tmp_path / "before", compressed, dense)


def test_earlier_terms_act_while_later_layers_are_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the branches left out of the running model, the later layers' terms are fitted to other inputs."""
    from runner.model.layerwise import calibrated

    dense = save(tmp_path / "model", "llama")
    compressed = made(tmp_path / "compressed", "quantize.rtn", dense, bits=2, group_size=16)
    host = recovered(tmp_path / "acting", compressed, dense)
    find(KIND).run(host)
    monkeypatch.setattr(calibrated, "install", lambda module, result, stored: [])
    without = recovered(tmp_path / "apart", compressed, dense)
    find(KIND).run(without)
    file = "adapter/adapter_model.safetensors"
    assert digests(host.out_dir)[file] != digests(without.out_dir)[file]
    after = [divergence(tmp_path / str(i), h.out_dir, dense) for i, h in enumerate((host, without))]
    assert after[0] < after[1]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_gptaq_has_shifted_is_not_undone(name: str, tmp_path: Path) -> None:
    """Against the inputs of the original model the result is nearer to it than against those of the compressed one."""
    dense = save(tmp_path / "model", name)
    params: dict[str, Any] = {"bits": 2, "group_size": 16, "asymmetric_calibration": 1}
    if name == "gpt2":
        params["format"] = "gptq"
    compressed = made(tmp_path / "compressed", "quantize.gptq", dense, **params)
    after = []
    for share in (1.0, 0.0):
        host = recovered(tmp_path / str(share), compressed, dense, asymmetric_calibration=share)
        result = find(KIND).run(host)
        assert result.metrics["error"] < result.metrics["error_before"]
        after.append(divergence(tmp_path / f"after-{share}", host.out_dir, dense))
    assert after[0] < 0.97 * after[1]
    assert after[0] < divergence(tmp_path / "before", compressed, dense)


def test_the_unchanged_model_is_that_of_against(tmp_path: Path) -> None:
    """Layer by layer: with the rank of the module, what comes out computes what `against` does, not what came in."""
    dense = save(tmp_path / "model", "llama")
    compressed = made(tmp_path / "compressed", "quantize.rtn", dense, bits=2, group_size=16)
    host = recovered(tmp_path / "eora", compressed, dense, rank=32, ignore=["k_proj", "v_proj"])
    find(KIND).run(host)
    alone = recovered(tmp_path / "alone", compressed, dense, rank=32, ignore=["k_proj", "v_proj"],
                      asymmetric_calibration=0)  # fmt: skip
    find(KIND).run(alone)
    after = [divergence(tmp_path / str(i), h.out_dir, dense) for i, h in enumerate((host, alone))]
    assert after[0] < after[1]


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_peft_reads_it_on_the_packed_base(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tests.model.layerwise.test_final_hidden import streamed_logits

    dense = save(tmp_path / "model", "llama")
    compressed = made(tmp_path / "compressed", "quantize.rtn", dense, bits=4, group_size=32)
    host = recovered(tmp_path / "eora", compressed, dense, ignore=["down_proj"])
    find(KIND).run(host)
    config = json.loads((host.out_dir / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    # peft looks for a `weight` in what it wraps: config.json says that packed ones are unpacked on loading.
    base = AutoModelForCausalLM.from_pretrained(host.out_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(host.out_dir), subfolder="adapter").eval()
    with torch.no_grad():
        loaded = model(input_ids=tokens(), use_cache=False).logits
    assert torch.allclose(loaded, streamed_logits(host.out_dir, tokens(), tmp_path / "scratch"), atol=1e-3)
    found: dict[str, Any] = {}
    exec(loading.line(host.out_dir), found)
    with torch.no_grad():
        assert torch.equal(found["model"].eval()(input_ids=tokens(), use_cache=False).logits, loaded)
    card = (host.out_dir / "README.md").read_text()
    assert "`adapter/` holds a low-rank adapter (EoRA, rank 4, no training)" in card
    assert "1. `recover.eora`: " in card
    assert "- An adapter of rank 4 beside them, in `adapter/`: load it too." in card


def test_several_schemes_are_unpacked_before_the_adapter_is_loaded(tmp_path: Path) -> None:
    dense = save(tmp_path / "model", "llama")
    overrides = {"overrides": {"down_proj": {"bits": 8}}}
    compressed = made(tmp_path / "compressed", "quantize.rtn", dense, bits=4, group_size=32, **overrides)
    host = recovered(tmp_path / "eora", compressed, dense)
    find(KIND).run(host)
    line, found = loading.line(host.out_dir), dict[str, Any]()
    assert "; model(**model.dummy_inputs); model.load_adapter(" in line
    exec(line, found)
    with torch.no_grad():
        logits = found["model"].eval()(input_ids=tokens(), use_cache=False).logits
    expected = Transformers(host.out_dir, dtype=torch.float32).prefill(tokens().numpy())
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_interrupted_step_goes_on_where_it_stopped(layer: int, tmp_path: Path) -> None:
    dense = save(tmp_path / "model", "llama", shard="20KB")
    compressed = made(tmp_path / "compressed", "quantize.rtn", dense, bits=3, group_size=16)
    whole = recovered(tmp_path / "whole", compressed, dense)
    find(KIND).run(whole)
    with pytest.raises(Interrupted):
        find(KIND).run(recovered(tmp_path / "resumed", compressed, dense, stop_after=layer))
    second = recovered(tmp_path / "resumed", compressed, dense)
    find(KIND).run(second)
    assert second.layers() == list(range(layer + 1, 4))
    assert digests(second.out_dir) == digests(whole.out_dir)


def test_a_checkpoint_that_was_not_compressed(tmp_path: Path) -> None:
    dense = save(tmp_path / "model", "llama")
    with pytest.raises(StepFailed) as caught:
        find(KIND).run(recovered(tmp_path / "eora", dense, dense))
    assert caught.value.message == (
        "there is no error to make up for: the weights of the checkpoint are those of `against`"
    )


def given(checkpoint: CheckpointFacts, against: CheckpointFacts) -> Inputs:
    data = {"data": DataFacts("calibration", 6, 24, 576, "0" * 64)}
    return Inputs(checkpoint, {"against": against}, data, machine_facts("cpu"))


def test_a_rank_above_the_size_of_a_module_lists_it(tmp_path: Path) -> None:
    model = facts(save(tmp_path / "model", "llama", num_hidden_layers=1), "model")
    params = defaults(KIND, {"data": "calibration", "rank": 20})
    [found] = find(KIND).check(params, given(model, model))
    assert (found.code, found.path) == ("R472", ("rank",))
    assert found.message == (
        "`rank` 20 is above the size of 2 modules:\n"
        "    `model.layers.0.self_attn.k_proj` is [16, 32]\n"
        "    `model.layers.0.self_attn.v_proj` is [16, 32]"
    )
    assert found.help == "lower `rank` to 16, or name those modules in `ignore`"


def test_another_model_to_compare_with(tmp_path: Path) -> None:
    model = facts(save(tmp_path / "model", "llama", num_hidden_layers=1), "model")
    wide = facts(save(tmp_path / "wide", "llama", num_hidden_layers=1, intermediate_size=48), "wide")
    other = facts(save(tmp_path / "other", "gpt2", n_layer=1), "other")
    params = defaults(KIND, {"data": "calibration", "rank": 4})
    [found] = find(KIND).check(params, given(model, wide))
    assert (found.code, found.path) == ("R475", ("against",))
    assert found.message == (
        "3 modules of the checkpoint cannot be compared with `against`:\n"
        "    `model.layers.0.mlp.down_proj` is [32, 64], in `against` [32, 48]\n"
        "    `model.layers.0.mlp.gate_proj` is [64, 32], in `against` [48, 32]\n"
        "    `model.layers.0.mlp.up_proj` is [64, 32], in `against` [48, 32]"
    )
    assert found.help == "name the checkpoint that this one was quantized or pruned from, with the same layers"
    [found] = find(KIND).check(params, given(model, other))
    assert found.message.endswith("`model.layers.0.self_attn.o_proj` is not in `against`\n    and 2 more")


def test_adapters_on_either_side(tmp_path: Path) -> None:
    model = facts(save(tmp_path / "model", "llama"), "model")
    params = defaults(KIND, {"data": "calibration", "rank": 4})
    adapted = find(KIND).outcome(params, given(model, model))
    assert adapted.adapter is not None
    assert adapted.tensors == model.tensors
    [found] = find(KIND).check(params, given(adapted, model))
    assert (found.code, found.message) == (
        "R471",
        (
            "the checkpoint carries an adapter in `adapter/`, which fits its present weights; one more would be fitted "
            "to them without it"
        ),
    )
    [found] = find(KIND).check(params, given(model, adapted))
    assert found.path == ("against",)
    assert found.message == "`against` names a checkpoint with an adapter in `adapter/`, which its weights do not hold"


def test_ignoring_everything(tmp_path: Path) -> None:
    model = facts(save(tmp_path / "model", "llama"), "model")
    params = defaults(KIND, {"data": "calibration", "ignore": ["*"], "rank": 4})
    [found] = find(KIND).check(params, given(model, model))
    assert found.message == "`ignore` leaves no linear module to change"


def test_what_is_planned_is_what_is_written(tmp_path: Path) -> None:
    dense = save(tmp_path / "model", "llama")
    compressed = made(tmp_path / "compressed", "quantize.rtn", dense, bits=4, group_size=16)
    host = recovered(tmp_path / "eora", compressed, dense)
    find(KIND).run(host)
    inputs = given(facts(compressed, "compressed"), facts(dense, "dense"))
    planned = find(KIND).outcome(host.params, inputs)
    written = json.loads((host.out_dir / "adapter" / "adapter_config.json").read_text())
    assert planned.adapter == written
    cost = find(KIND).estimate(host.params, inputs)
    size = sum(path.stat().st_size for path in host.out_dir.rglob("*.safetensors"))
    assert cost.disk == pytest.approx(size, rel=0.25)
    more = find(KIND).estimate({**host.params, "rank": 16}, replace(inputs))
    assert more.disk - cost.disk == 3 * cost.disk - 3 * inputs.checkpoint.nbytes


def test_it_takes_and_makes_any_checkpoint() -> None:
    kind = find(KIND)
    assert kind.CONSUMES == ("checkpoint", "quantized-checkpoint")
    assert kind.PRODUCES == SAME
