"""Adapters beside a checkpoint: reading their configuration, refusing what cannot be applied, streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import RecipeError
from runner.model.architecture.inspect import facts
from runner.model.checkpoint import adapter_config, adapter_writer
from runner.model.checkpoint.quantization.scheme import Numbers
from runner.model.layerwise import adapter
from runner.model.layerwise.activation_rounding import round_inputs
from runner.model.layerwise.streamed_model import StreamedModel
from runner.steps.kinds import find
from tests.host import Host
from tests.tiny import save, tokens


def adapted(tmp_path: Path, name: str = "llama", rank: int = 2, **options: Any) -> Path:
    folder = save(tmp_path / "model", name)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "model.layers.1.mlp.up_proj.lora_A.weight": torch.randn(rank, 32, generator=generator),
        "model.layers.1.mlp.up_proj.lora_B.weight": torch.randn(64, rank, generator=generator),
    }
    if options.get("dora"):
        tensors["model.layers.1.mlp.up_proj.lora_magnitude_vector"] = torch.rand(64, generator=generator)
    adapter_writer.write(folder, adapter_config.config(rank, 4, ["model.layers.1.mlp.up_proj"], **options), tensors)
    return folder


def test_a_checkpoint_without_one(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    assert adapter_config.adapter_config(folder) is None
    assert adapter.opened(folder) is None
    assert facts(folder, "model").adapter is None


def test_facts_have_its_configuration(tmp_path: Path) -> None:
    found = facts(adapted(tmp_path), "model").adapter
    assert found is not None
    assert found == adapter_config.config(2, 4, ["model.layers.1.mlp.up_proj"])


def test_equal_adapters_have_equal_bytes(tmp_path: Path) -> None:
    one, two = (adapted(tmp_path / name) for name in "ab")
    for name in (adapter_config.CONFIG, adapter_config.WEIGHTS):
        assert (one / "adapter" / name).read_bytes() == (two / "adapter" / name).read_bytes()


@pytest.mark.parametrize("dora", [False, True])
def test_a_streamed_layer_has_its_branch_until_it_is_freed(dora: bool, tmp_path: Path) -> None:
    folder = adapted(tmp_path, dora=dora)
    streamed_model: Any = StreamedModel(folder)
    x = torch.randn(3, 32)
    plain = streamed_model.load(0).mlp.up_proj
    assert torch.equal(plain(x), x @ plain.weight.T)
    module = streamed_model.load(1).mlp.up_proj
    tensors = {n: streamed_model.adapter.reader.read(n).double() for n in streamed_model.adapter.reader.names()}
    name = "base_model.model.model.layers.1.mlp.up_proj"
    a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    weight = module.weight.double() + 2 * b @ a
    if dora:
        weight = weight * (tensors[f"{name}.lora_magnitude_vector"] / weight.square().sum(1).sqrt())[:, None]
    torch.testing.assert_close(module(x).double(), x.double() @ weight.T, rtol=1e-4, atol=1e-4)
    streamed_model.free(1)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_a_branch_sees_its_inputs_before_they_are_rounded(tmp_path: Path) -> None:
    """As in vLLM, peft and graphs; the product with the packed weight sees them rounded."""
    dense = save(tmp_path / "model")
    host = Host(tmp_path / "step", "quantize.rtn", dense, None, scheme="w8a8", bits=8, group_size="channel")
    find("quantize.rtn").run(host)
    name = "model.layers.1.mlp.up_proj"
    a, b = torch.randn(2, 32), torch.randn(64, 2)
    factors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    adapter_writer.write(host.out_dir, adapter_config.config(2, 4, [name]), factors)
    streamed_model: Any = StreamedModel(host.out_dir)
    module = streamed_model.load(1).mlp.up_proj
    x = torch.randn(3, 32)
    x[:, 0] = 40 * x.abs().amax(1)  # levels far apart
    rounded = round_inputs(x, Numbers("int8", "token"))
    assert float((x - rounded).abs().max()) > 0.1
    expected = rounded @ module.weight.T + 2 * x @ a.T @ b.T
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "linears", "expected"),
    [
        (["l.0.q", "l.1.q"], ["l.0.q", "l.0.k", "l.1.q", "l.1.k"], ["q"]),
        (["l.0.q"], ["l.0.q", "l.0.k", "l.1.q", "l.1.k"], ["l.0.q"]),
    ],
)
def test_targets_are_named_as_shortly_as_they_can_be(
    chosen: list[str], linears: list[str], expected: list[str]
) -> None:
    assert adapter_config.targets(chosen, linears) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "holds an adapter of the type `IA3`; LoRA, rsLoRA and DoRA can be applied"),
        ({"bias": "all"}, 'sets `bias`: "all", which cannot be applied'),
        ({"modules_to_save": ["lm_head"]}, 'sets `modules_to_save`: ["lm_head"], which cannot be applied'),
    ],
)
def test_what_cannot_be_applied(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = adapted(tmp_path)
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RecipeError) as caught:
        facts(folder, "model")
    assert caught.value.render() == (
        f"error[R470]: `{path}` {message}\nhelp: merge the adapter into its model, or remove that folder"
    )


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    folder = adapted(tmp_path)
    path = folder / "adapter" / "adapter_config.json"
    path.write_text("{")
    with pytest.raises(RecipeError) as caught:
        adapter_config.adapter_config(folder)
    assert caught.value.diagnostics[0].message.startswith(f"`{path}` cannot be read as JSON: ")


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    folder = adapted(tmp_path)
    tensors = {
        "model.layers.1.mlp.up_proj.lora_A.weight": torch.zeros(2, 16),
        "model.layers.1.mlp.up_proj.lora_B.weight": torch.zeros(64, 2),
        "model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(2, 32),
        "model.layers.9.mlp.up_proj.lora_B.weight": torch.zeros(64, 2),
    }
    adapter_writer.write(folder, adapter_config.config(2, 4, ["up_proj"]), tensors)
    with pytest.raises(RecipeError) as caught:
        StreamedModel(folder)
    assert caught.value.diagnostics[0].message == (
        f"the adapter in `{folder / 'adapter'}` does not fit the checkpoint:\n"
        "    `model.layers.1.mlp.up_proj` is [64, 32], the adapter is for [64, 16]\n"
        "    `model.layers.9.mlp.up_proj` is no module of the decoder layers"
    )


def test_steps_that_rewrite_weights_say_so() -> None:
    assert adapter_config.adapter_conflicts(None, "this step would change those") == []
    (found,) = adapter_config.adapter_conflicts(adapter_config.config(2, 4, ["*"]), "this step would change those")
    assert found.render() == (
        "error[R471]: the checkpoint carries an adapter in `adapter/`, which fits its present weights; this step would "
        "change those\n"
        "help: merge it first (`merge: requantize`, on a dense checkpoint `merge: auto`, in `recover.lora`), or do "
        "this before the step that makes the adapter"
    )


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    from tests.training.recovering import perplexity, plain, streamed

    folder = adapted(tmp_path, rslora=True)
    ids = tokens(2, 12)
    expected = perplexity(plain(folder, adapter=True), ids)
    assert abs(expected - perplexity(plain(folder), ids)) > 1e-2 * expected
    assert streamed(tmp_path / "a", folder, ids) == pytest.approx(expected, rel=1e-5)
