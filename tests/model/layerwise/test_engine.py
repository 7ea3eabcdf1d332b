"""The layer stream: every architecture, resumption, equal bytes whichever way a layer is run, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Interrupted, RecipeError, StepFailed
from runner.model.layerwise import calibrated, memory_budget
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import layerwise
from runner.steps.kinds import find
from runner.steps.layer_method import LayerMethod
from tests.host import Host
from tests.tiny import ARCHITECTURES, save, tokens

GPTQ: dict[str, Any] = {"group_size": 16, "bits": 4}


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def gptq(tmp_path: Path, name: str, checkpoint: Path, **params: Any) -> Host:
    host = Host(tmp_path / name, "quantize.gptq", checkpoint, tokens(), **(GPTQ | params))
    find("quantize.gptq").run(host)
    return host


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nightly) if name == "qwen2_moe" else name
        for name in sorted(set(ARCHITECTURES) - {"gpt2"})
    ],
)
def test_every_architecture_is_quantized_and_loads_in_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.model.layerwise.test_final_hidden import plain_logits, streamed_logits

    folder = save(tmp_path / "model", name, dtype=torch.bfloat16)
    host = gptq(tmp_path, "step", folder, bits=8)
    ids = tokens()
    dense = plain_logits(folder, ids, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(host.out_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        loaded = model(input_ids=ids, use_cache=False).logits
    streamed = streamed_logits(host.out_dir, ids, tmp_path / "scratch")
    scale = dense.std()
    assert (loaded - dense).abs().mean() < 0.1 * scale
    assert (streamed - loaded).abs().mean() < 0.1 * scale
    changed = json.loads((host.out_dir / "config.json").read_text())["quantization_config"]
    assert changed["quant_method"] == "compressed-tensors"


def test_conv1d_weights_are_seen_as_rows_of_outputs(tmp_path: Path) -> None:
    from tests.model.layerwise.test_final_hidden import plain_logits, streamed_logits

    folder = save(tmp_path / "model", "gpt2", n_embd=32)
    host = gptq(tmp_path, "step", folder, bits=8, format="gptq")
    dense = plain_logits(folder, tokens(), torch.float32)
    streamed = streamed_logits(host.out_dir, tokens(), tmp_path / "scratch")
    assert (streamed - dense).abs().mean() < 0.05 * dense.std()
    pruned = Host(tmp_path / "pruned", "prune.wanda", folder, tokens(), sparsity=0.5)
    find("prune.wanda").run(pruned)
    assert (streamed_logits(pruned.out_dir, tokens(), tmp_path / "again") - dense).abs().mean() < 2 * dense.std()


@pytest.mark.parametrize(
    "params",
    [{}, {"asymmetric_calibration": 0.5}, {"asymmetric_calibration": 0.5, "comparison_fraction": 0.5}],
    ids=["one lane", "two lanes", "some batches in two lanes"],
)
def test_running_again_gives_the_bytes_of_suspending(
    params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", "qwen3")
    suspended = gptq(tmp_path, "suspended", folder, **params)
    monkeypatch.setattr(calibrated, "suspend_limit", lambda device_memory: 0)
    again = gptq(tmp_path, "again", folder, **params)
    assert digests(suspended.out_dir) == digests(again.out_dir)


def test_true_sequential_order_matters(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    ordered = gptq(tmp_path, "ordered", folder)
    at_once = gptq(tmp_path, "at once", folder, true_sequential=False)
    assert digests(ordered.out_dir)["model.safetensors"] != digests(at_once.out_dir)["model.safetensors"]


def test_stacking_changes_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    method: LayerMethod = find("quantize.gptq").method  # type: ignore[attr-defined]
    stacked = Host(tmp_path / "stacked", "quantize.gptq", folder, tokens(), **GPTQ)
    layerwise.run(method, stacked)
    single = Host(tmp_path / "single", "quantize.gptq", folder, tokens(), **GPTQ)
    layerwise.run(replace(method, stacked=False), single)
    weights = [digests(host.out_dir)["model.safetensors"] for host in (stacked, single)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    "kind", ["quantize.gptq", "quantize.signround", "prune.wanda", "prune.sparsegpt", "quantize.rtn"]
)
def test_an_interrupted_step_goes_on_where_it_stopped(kind: str, layer: int, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", shard="20KB")
    ids = None if kind == "quantize.rtn" else tokens()
    params: dict[str, Any] = GPTQ if kind in ("quantize.gptq", "quantize.signround") else {}
    whole = Host(tmp_path / "whole", kind, folder, ids, **params)
    find(kind).run(whole)
    first = Host(tmp_path / "resumed", kind, folder, ids, stop_after=layer, **params)
    with pytest.raises(Interrupted):
        find(kind).run(first)
    second = Host(tmp_path / "resumed", kind, folder, ids, **params)
    find(kind).run(second)
    assert second.layers() == list(range(layer + 1, 4))
    assert digests(second.out_dir) == digests(whole.out_dir)


def test_a_step_stopped_after_its_last_layer_only_puts_the_folder_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", "llama")
    whole = gptq(tmp_path, "whole", folder)

    def stop(*_: Any) -> None:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("runner.model.layerwise.output.Output.finish", stop)
        with pytest.raises(Interrupted):
            gptq(tmp_path, "stopped", folder)
    second = gptq(tmp_path, "stopped", folder)
    assert second.layers() == []
    assert digests(second.out_dir) == digests(whole.out_dir)


def test_hidden_states_that_were_torn_are_not_trusted(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    whole = gptq(tmp_path, "whole", folder)
    first = Host(tmp_path / "torn", "quantize.gptq", folder, tokens(), stop_after=1, **GPTQ)
    with pytest.raises(Interrupted):
        find("quantize.gptq").run(first)
    (hidden,) = first.scratch_dir.glob("hidden-*")
    data = bytearray(hidden.read_bytes())
    data[100] ^= 1
    hidden.write_bytes(data)
    second = gptq(tmp_path, "torn", folder)
    assert second.layers() == [1, 2, 3]
    assert second.events[0]["text"] == (
        "the hidden states of the interrupted run are not intact: starting again at the first layer"
    )
    assert digests(second.out_dir) == digests(whole.out_dir)


def test_the_statistics_are_those_of_the_plain_model(tmp_path: Path) -> None:
    """Statistics of every linear while weights are left alone, against hooks on the whole model."""
    from transformers import AutoModelForCausalLM

    folder = save(tmp_path / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokens()
    expected: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda m, i, o, n=name: expected.__setitem__(n, i[0].reshape(-1, i[0].shape[-1]).double())
            )
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    seen: dict[str, Statistics] = {}

    def keep(linear: Linear, statistics: Statistics, params: Any) -> Transformed:
        for name in linear.names:
            seen[name] = statistics
        return Transformed(weight=linear.weight)

    host = Host(tmp_path / "step", "prune.wanda", folder, ids)
    layerwise.run(LayerMethod(keep, statistics="cross", stacked=True), host)
    assert len(seen) == 21
    for name, statistics in seen.items():
        x = expected[name]
        assert statistics.tokens == x.shape[0]
        assert statistics.hessian is not None
        torch.testing.assert_close(statistics.hessian.double(), 2 / x.shape[0] * x.T @ x, rtol=1e-4, atol=1e-4)
        assert statistics.cross is not None
        assert float(statistics.cross.abs().max()) == 0.0, "nothing was changed, so nothing drifts"


def test_nan_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed) as caught:
        gptq(tmp_path, "step", folder)
    assert caught.value.message == (
        "`model.layers.1.mlp.up_proj.weight` in model.safetensors holds 1 NaN value, the first at [3, 5]"
    )


def test_missing_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError) as caught:
        gptq(tmp_path, "step", folder)
    messages = {d.message for d in caught.value.diagnostics}
    assert messages == {
        f"tensor `lm_head.weight` is missing from {folder}",
        "`model.norm.weight` is [7] in model.safetensors, the model wants [32]",
    }


def test_overrides_and_ignore(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    host = gptq(
        tmp_path, "step", folder,
        ignore=["lm_head", "model.layers.0.*", "k_proj"], overrides={"down_proj": {"bits": 8, "group_size": 32}},
    )  # fmt: skip
    from safetensors import safe_open

    with safe_open(host.out_dir / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert "model.layers.0.mlp.down_proj.weight" in names
        assert "model.layers.1.self_attn.k_proj.weight" in names
        assert "model.layers.1.self_attn.q_proj.weight_packed" in names
        assert file.get_slice("model.layers.1.mlp.down_proj.weight_packed").get_shape() == [32, 16]
        assert file.get_slice("model.layers.1.mlp.down_proj.weight_scale").get_shape() == [32, 2]


def test_zeros_of_a_pruned_checkpoint_survive_quantization(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from runner.model.checkpoint.reader import CheckpointReader

    folder = save(tmp_path / "model", "llama")
    pruned = Host(tmp_path / "pruned", "prune.wanda", folder, tokens(), pattern="2:4")
    find("prune.wanda").run(pruned)
    masks = {k: v == 0 for k, v in load_file(pruned.out_dir / "model.safetensors").items() if k.endswith("proj.weight")}
    assert all(abs(float(m.float().mean()) - 0.5) < 1e-6 for m in masks.values())
    host = gptq(tmp_path, "step", pruned.out_dir)
    with CheckpointReader(host.out_dir) as reader:
        for name, mask in masks.items():
            weight = reader.read_module_weight(name.removesuffix(".weight"))
            assert not weight[mask].any(), name
            assert weight[~mask].any(), name


def test_the_suspension_limit_is_what_the_planner_uses() -> None:
    assert calibrated.suspend_limit is memory_budget.suspend_limit  # type: ignore[attr-defined]
    assert memory_budget.suspend_limit(0) == memory_budget.suspend_limit(2 << 30) == memory_budget.SUSPEND_LIMIT
    assert memory_budget.suspend_limit(80 << 30) == 20 << 30
