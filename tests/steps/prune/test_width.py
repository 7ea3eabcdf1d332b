"""`prune.width`: equal to transformers' model with the same units silenced or sliced by hand, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted, StepFailed
from runner.model.architecture import units
from runner.model.architecture.inspect import facts
from runner.model.layerwise import narrowed_checkpoint
from runner.model.layerwise.streamed_model import StreamedModel
from runner.plan.machine import machine_facts
from runner.plan.resolve_inputs import described
from runner.steps.prune import width
from tests.host import Host
from tests.steps.transform.checkpoints import digests, distance, logits, save
from tests.tiny import tokens

HIDDEN = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "olmo2")
HEADS = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "gemma", "gemma2",
         "gemma3_text")  # fmt: skip


def pruned(folder: Path, checkpoint: Path, **params: Any) -> Host:
    host = Host(folder, "prune.width", checkpoint, tokens(), **{"multiple_of": 8, **params})
    host.result = width.run(host)  # type: ignore[attr-defined]
    return host


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def stay(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Which columns of `before` are those of `after`, compared in the first rows that both have."""
    found = [next(c for c in range(before.shape[1]) if torch.equal(before[:, c], after[:, k]))
             for k in range(after.shape[1])]  # fmt: skip
    assert found == sorted(set(found))
    return found


@pytest.mark.parametrize("name", HEADS)
def test_it_computes_what_the_model_without_those_neurons_and_heads_does(name: str, tmp_path: Path) -> None:
    """Transformers' own forward with zeros before `down_proj` and `o_proj`, on tokens of other texts."""
    folder = save(tmp_path / "model", name)
    host = pruned(tmp_path / "step", folder, feed_forward={"drop": 0.25}, heads={"drop": 0.5})
    before, after = model_of(folder), model_of(host.out_dir)
    assert after.config.intermediate_size == 48
    assert (after.config.num_attention_heads, after.config.num_key_value_heads) == (
        2,
        before.config.num_key_value_heads,
    )
    for one, other in zip(before.model.layers, after.model.layers, strict=True):
        for wide, narrow in ((one.mlp.down_proj, other.mlp.down_proj), (one.self_attn.o_proj, other.self_attn.o_proj)):
            silent = torch.ones(wide.in_features, dtype=torch.bool)
            silent[stay(wide.weight, narrow.weight)] = False
            wide.weight.data[:, silent] = 0
    ids = tokens(3, 17).flip(1)
    with torch.no_grad():
        expected, found = (model(input_ids=ids, use_cache=False).logits for model in (before, after))
    assert distance(expected, found) < 1e-5
    assert distance(logits(folder, ids), found) > 0.01


def test_whole_groups_go_with_their_keys_and_values(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "qwen3")
    host = pruned(tmp_path / "step", folder, key_value_heads={"keep": 1})
    before, after = model_of(folder), model_of(host.out_dir)
    assert (after.config.num_attention_heads, after.config.num_key_value_heads, after.config.head_dim) == (2, 1, 16)
    for layer, (one, other) in enumerate(zip(before.model.layers, after.model.layers, strict=True)):
        kept = stay(one.self_attn.o_proj.weight, other.self_attn.o_proj.weight)
        heads = host.result.details["layers"][layer]["heads"]  # type: ignore[attr-defined]
        assert kept == [head * 16 + channel for head in heads for channel in range(16)]
        assert heads in ([0, 1], [2, 3])
        silent = torch.ones(64, dtype=torch.bool)
        silent[kept] = False
        one.self_attn.o_proj.weight.data[:, silent] = 0
    with torch.no_grad():
        expected, found = (model(input_ids=tokens(), use_cache=False).logits for model in (before, after))
    assert distance(expected, found) < 1e-5


def test_heads_with_their_own_keys_and_values_go_with_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "mistral", num_key_value_heads=4)
    host = pruned(tmp_path / "step", folder, heads={"drop": 1})
    config = json.loads((host.out_dir / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (3, 3, 8)
    assert host.result.metrics["divergence"] < 1e-5  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_states_are_those_of_a_model_sliced_by_name(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = save(tmp_path / "model", name)
    host = pruned(tmp_path / "step", folder, hidden_size={"drop": 0.25})
    before = load_file(folder / "model.safetensors")
    kept = stay(before["model.embed_tokens.weight"], model_of(host.out_dir).model.embed_tokens.weight)
    config = AutoConfig.from_pretrained(folder)
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.hidden_size = 24
    sliced = AutoModelForCausalLM.from_config(config).eval()
    for key, parameter in sliced.named_parameters():
        value = before[key]
        rows = key.endswith(("o_proj.weight", "o_proj.bias", "down_proj.weight", "down_proj.bias", "layernorm.weight",
                             "model.norm.weight"))  # fmt: skip
        columns = value.ndim == 2 and not key.endswith(("o_proj.weight", "down_proj.weight"))
        value = value[kept] if rows else value
        parameter.data = value[:, kept] if columns else value
    with torch.no_grad():
        expected = sliced(input_ids=tokens(), use_cache=False).logits
    assert distance(expected, logits(host.out_dir, tokens())) < 1e-5


def test_units_are_ranked_as_minitron_does(tmp_path: Path) -> None:
    """Mean |x| over the tokens of a window, L2 over windows; heads by their norm, within their group."""
    folder = save(tmp_path / "model", "llama")
    host = pruned(tmp_path / "step", folder, feed_forward={"keep": 40}, heads={"keep": 2}, hidden_size={"keep": 16})
    model, after = model_of(folder), model_of(host.out_dir)
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        return lambda module, inputs: seen.__setitem__(name, inputs[0].double())

    for number, layer in enumerate(model.model.layers):
        for name in ("self_attn.o_proj", "mlp.down_proj", "self_attn.q_proj", "mlp.up_proj"):
            layer.get_submodule(name).register_forward_pre_hook(watch(f"{number}.{name}"))
    with torch.no_grad():
        model(input_ids=tokens(), use_cache=False)
    hidden = torch.zeros(32, dtype=torch.float64)
    for number, (one, other) in enumerate(zip(model.model.layers, after.model.layers, strict=True)):
        norms = [seen[f"{number}.{name}"].abs().mean(1).square().sum(0)
                 for name in ("self_attn.q_proj", "mlp.up_proj")]  # fmt: skip
        hidden += (norms[0] + norms[1]).sqrt()
        neurons = seen[f"{number}.mlp.down_proj"].abs().mean(1).norm(dim=0)
        assert other.mlp.down_proj.weight.shape == (16, 40)
        heads = seen[f"{number}.self_attn.o_proj"].unflatten(-1, (4, 8)).norm(dim=-1).mean(1).norm(dim=0)
        best = [int(heads[:2].argmax()), 2 + int(heads[2:].argmax())]
        assert host.result.details["layers"][number]["heads"] == best  # type: ignore[attr-defined]
        rows = sorted(neurons.topk(40).indices.tolist())
        channels = sorted(hidden.topk(16).indices.tolist()) if number == 2 else []
        if channels:
            assert torch.equal(other.mlp.up_proj.weight, one.mlp.up_proj.weight[rows][:, channels])


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_other_criteria_choose_other_units(criterion: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama_tied")
    cut: dict[str, Any] = {"feed_forward": {"keep": 32}, "key_value_heads": {"keep": 1}, "hidden_size": {"keep": 24}}
    host = pruned(tmp_path / "step", folder, criterion=criterion, **cut)
    usual = pruned(tmp_path / "usual", folder, **cut)
    assert digests(host.out_dir) != digests(usual.out_dir)
    assert host.result.metrics["divergence"] < 1e-5  # type: ignore[attr-defined]
    lost = [each.result.metrics["lost_importance"] for each in (host, usual)]  # type: ignore[attr-defined]
    assert lost[0] > lost[1]  # of activations, whatever the criterion
    if criterion == "magnitude":
        before, after = (load_file(path / "model.safetensors") for path in (folder, host.out_dir))
        squares = torch.zeros(32, dtype=torch.float64)
        sums: dict[str, torch.Tensor] = {}
        for key, value in before.items():
            squares = value.double().square()
            part = key.partition("layers.")[2].partition(".")[0] or "outside"
            down = key.endswith(("o_proj.weight", "down_proj.weight"))
            of_channels = squares if squares.ndim == 1 else squares.sum(1) if down else squares.sum(0)
            sums[part] = sums.get(part, torch.zeros(32, dtype=torch.float64)) + of_channels
        total = torch.stack([each.sqrt() for each in sums.values()]).sum(0)
        kept = stay(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
        assert kept == sorted(total.topk(24).indices.tolist())


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "qwen3", torch.bfloat16)
    cut: dict[str, Any] = {"feed_forward": {"keep": 32}, "heads": {"keep": 2}, "hidden_size": {"keep": 24}}
    whole = pruned(tmp_path / "whole", folder, **cut)
    stopped = Host(tmp_path / "stopped", "prune.width", folder, tokens(), 1, multiple_of=8, **cut)
    with pytest.raises(Interrupted):
        width.run(stopped)
    again = pruned(tmp_path / "stopped", folder, **cut)
    assert again.layers() == [2, 3]
    assert digests(whole.out_dir) == digests(again.out_dir)
    assert whole.result.metrics == again.result.metrics  # type: ignore[attr-defined]


def inputs_of(folder: Path) -> Inputs:
    data = {"data": DataFacts("d", 6, 24, 999, "0")}
    return Inputs(described(facts(folder, str(folder)), folder), {}, data, machine_facts("cpu"))


@pytest.mark.parametrize(("name", "cut"), [
    ("qwen2", {"feed_forward": {"drop": 0.25}, "heads": {"keep": 2}, "hidden_size": {"drop": 8}}),
    ("phi3", {"key_value_heads": {"drop": 1}, "feed_forward": {"keep": 32}}),
    ("llama_tied", {"hidden_size": {"keep": 16}}),
])  # fmt: skip
def test_the_outcome_foretold_is_what_is_written(name: str, cut: dict[str, Any], tmp_path: Path) -> None:
    """Its facts and its description, so that later steps are planned on what they get; and every tensor's fate."""
    folder = save(tmp_path / "model", name)
    host, inputs = pruned(tmp_path / "step", folder, **cut), inputs_of(folder)
    assert width.check(host.params, inputs) == []
    foretold = width.outcome(host.params, inputs)
    found = described(facts(host.out_dir, "model"), host.out_dir)
    assert {n: (t.dtype, t.shape, t.nbytes) for n, t in foretold.tensors.items()} == {
        n: (t.dtype, t.shape, t.nbytes) for n, t in found.tensors.items()
    }
    assert foretold.sites == found.sites
    assert foretold.config.raw == found.config.raw
    assert foretold.description is not None
    assert found.description is not None
    assert replace(foretold.description, warnings=()) == replace(found.description, warnings=())
    account = host.result.account  # type: ignore[attr-defined]
    assert {n for n, fate in account.fates.items() if fate.fate == "changed"} == width.changes(host.params, inputs)
    assert set(account.fates) == set(inputs.checkpoint.tensors)
    cost = width.estimate(host.params, inputs)
    assert cost.disk == sum(t.nbytes for t in found.tensors.values())


def test_a_result_that_computes_something_else_fails_the_step(tmp_path: Path) -> None:
    """Rows of one projection in another order than those of the others."""
    folder = save(tmp_path / "model", "llama")
    host = pruned(tmp_path / "step", folder, feed_forward={"keep": 48}, hidden_size={"keep": 24})
    given = facts(folder, str(folder))
    after = width.outcome(host.params, inputs_of(folder))
    path = host.out_dir / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].roll(1, 0)
    save_file(tensors, path, metadata={"format": "pt"})
    wide, narrow = (load_file(each / "model.safetensors") for each in (folder, host.out_dir))
    down, table = "model.layers.{}.mlp.down_proj.weight", "model.embed_tokens.weight"
    hidden = stay(wide[table], narrow[table])
    kept = [
        {units.HIDDEN: hidden, units.FEED_FORWARD: stay(wide[down.format(n)][hidden], narrow[down.format(n)])}
        for n in range(3)
    ]
    narrowing = narrowed_checkpoint.Narrowing(given, units.widths(after), kept)
    with pytest.raises(StepFailed) as caught:
        narrowed_checkpoint.compare(narrowing, StreamedModel(folder), StreamedModel(host.out_dir))
    found = str(caught.value).rpartition(" ")[2]
    assert str(caught.value) == (
        "the narrower model does not compute what the original does without what was cut: outputs differ by a share of "
        f"{found}"
    )
    assert float(found) > 0.1


def refused(folder: Path, **params: Any) -> tuple[str, str, str, tuple[str | int, ...]]:
    [found] = width.check(Host(folder, "prune.width", folder, tokens(), **params).params, inputs_of(folder))
    return found.code, found.message, found.help or "", tuple(found.path or ())


NARROW = (
    "types that can be made narrower are `gemma`, `gemma2`, `gemma3_text`, `granite`, `llama`, `mistral`, `olmo2`, "
    "`phi3`, `qwen2`, `qwen3` and `smollm3`"
)
UNEVEN = "does not have the shape that config.json and the other layers lead to expect"
SCALED = "the model multiplies its embeddings by the square root of the hidden size, which would change"
NORMED = "the model norms queries and keys over all heads, which others would change"


def test_models_whose_widths_are_not_known(tmp_path: Path) -> None:
    folder = save(tmp_path / "gpt2", "gpt2")
    unknown = f"it is not known which rows and columns of the tensors of `{folder}` (`gpt2`) belong together"
    assert refused(folder, feed_forward={"drop": 0.5}) == ("R801", unknown, NARROW, ())
    folder = save(tmp_path / "gemma2", "gemma2")
    assert refused(folder, hidden_size={"keep": 16}) == (
        "R801", f"`hidden_size` of `{folder}` (`gemma2`) cannot be cut: {SCALED}", "leave it out", ("hidden_size",),
    )  # fmt: skip
    folder = save(tmp_path / "olmo2", "olmo2")
    assert refused(folder, heads={"drop": 0.5}) == (
        "R801", f"`heads` of `{folder}` (`olmo2`) cannot be cut: {NORMED}", "leave it out", ("heads",),
    )  # fmt: skip


def test_layers_of_different_widths(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    given = inputs_of(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = {**given.checkpoint.tensors, name: replace(given.checkpoint.tensors[name], shape=(60, 32))}
    uneven = replace(given, checkpoint=replace(given.checkpoint, tensors=tensors))
    params = Host(tmp_path / "step", "prune.width", folder, tokens(), feed_forward={"drop": 0.5}).params
    [found] = width.check(params, uneven)
    assert (found.code, found.message, found.help) == (
        "R801",
        f"`{name}` of `{folder}` (`llama`) {UNEVEN}",
        "only models whose layers all have the same widths can be made narrower",
    )
