"""Cutting layers out of a checkpoint, against transformers with the same layers taken out; block influence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner.contracts.model_config import ModelConfig
from runner.errors import Interrupted, RecipeError
from runner.model.architecture.inspect import facts
from runner.model.checkpoint import derived
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import same_layers
from runner.model.layerwise.layer_list import find_layers
from runner.model.layerwise.stream_run import StreamRun
from runner.plan.resolve_inputs import described
from runner.steps.layer_stream import hooks
from runner.training import layer_dropping, layer_selection
from tests.host import Host
from tests.steps.transform import checkpoints
from tests.tiny import ARCHITECTURES, save, tokens


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_without(folder: Path, keep: list[int], ids: torch.Tensor) -> torch.Tensor:
    """The logits of a model in which the other layers hand their input on."""

    class Nothing(nn.Module):
        def __init__(self, layer: nn.Module, tuples: bool) -> None:
            super().__init__()
            self.__dict__["layer"], self.tuples = layer, tuples

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["layer"], name)

        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self.__dict__["tuples"] else hidden_states

    model = model_of(folder)
    kinds: list[type] = []
    layers = find_layers(model, model.config)[1]
    layers[0].register_forward_hook(lambda module, given, output: kinds.append(type(output)))
    with torch.no_grad():
        model(input_ids=ids)
        for index in range(len(layers)):
            if index not in keep:
                layers[index] = Nothing(layers[index], kinds[0] is tuple)
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cut_equals_the_model_with_layers_that_do_nothing(name: str, tmp_path: Path) -> None:
    """Of four layers, so that alternating layer types do not fall on their places again by chance."""
    changes: dict[str, Any] = {"n_layer": 4} if name == "gpt2" else {"num_hidden_layers": 4}
    folder, ids, keep = save(tmp_path / "model", name, **changes), tokens(), [0, 2, 3]
    layer_dropping.cut(folder, keep, tmp_path / "cut")
    cut = model_of(tmp_path / "cut")
    assert cut.config.num_hidden_layers == 3
    with torch.no_grad():
        found = cut(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, logits_without(folder, keep, ids), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert (found - model_of(folder)(input_ids=ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_facts_foretold_are_those_of_the_cut(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name)
    before = facts(folder, "model")
    layer_dropping.cut(folder, [0, 2], tmp_path / "cut")
    found, foretold = facts(tmp_path / "cut", "model"), layer_selection.facts(before, [0, 2])
    assert {n: (t.dtype, t.shape, t.nbytes) for n, t in found.tensors.items()} == {
        n: (t.dtype, t.shape, t.nbytes) for n, t in foretold.tensors.items()
    }
    assert (foretold.sites, foretold.layer_count, foretold.layers_prefix) == (found.sites, 2, found.layers_prefix)
    assert foretold.architecture == before.architecture


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "qwen3_moe"])
def test_the_description_foretold_is_that_of_the_cut(name: str, tmp_path: Path) -> None:
    """So that steps after a cut are planned on its modules; also of mixtures."""
    folder = checkpoints.save(tmp_path / "model", name)
    layer_dropping.cut(folder, [0, 2], tmp_path / "cut")
    before = described(facts(folder, str(folder)), folder)
    found, foretold = described(facts(tmp_path / "cut", "cut"), tmp_path / "cut"), layer_selection.facts(before, [0, 2])
    assert foretold.sites == found.sites
    assert foretold.description is not None
    assert found.description is not None
    assert replace(foretold.description, warnings=()) == replace(found.description, warnings=())


def test_numbers_of_layers_are_counted_anew() -> None:
    mixture = {"num_hidden_layers": 6, "mlp_only_layers": [0, 3], "decoder_sparse_step": 2, "first_k_dense_replace": 2}
    assert layer_selection.config(ModelConfig.of(mixture), [0, 1, 3, 5]) == {
        "num_hidden_layers": 4, "mlp_only_layers": [0, 2], "decoder_sparse_step": 1, "first_k_dense_replace": 2,
    }  # fmt: skip
    plain = {"num_hidden_layers": 2, "mlp_only_layers": [1, 0]}
    assert layer_selection.config(ModelConfig.of(plain), [1]) == {"num_hidden_layers": 1, "mlp_only_layers": [0]}


def test_a_sparse_step_becomes_a_list_of_dense_layers(tmp_path: Path) -> None:
    """By transformers' own construction of the smaller model, whose layers are compared with those that stay."""
    folder = checkpoints.save(tmp_path / "model", "qwen3_moe")
    config = json.loads((folder / "config.json").read_text())
    source = config | {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    (folder / "config.json").write_text(json.dumps(source))
    cut = layer_selection.config(ModelConfig.of(source), [1, 2, 3])
    assert same_layers.difference(folder, cut, [1, 2, 3]) is None
    assert same_layers.difference(folder, cut | {"mlp_only_layers": []}, [1, 2, 3]) == (
        "`mlp` of layer 2 would be a Qwen3MoeSparseMoeBlock"
    )
    assert same_layers.difference(folder, cut | {"num_hidden_layers": 2}, [1, 2, 3]) == "the model has 2 layers"


def test_what_no_configuration_describes_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path / "model", "diffllama")
    with pytest.raises(RecipeError) as caught:
        layer_dropping.cut(folder, [0, 2], tmp_path / "cut")
    [found] = caught.value.diagnostics
    assert (found.code, found.help) == ("R806", "leave the step out, or use `prune.width`")
    assert found.message == (
        f"layers of `{folder}` (`diffllama`) cannot be left out: `lambda_init` of `self_attn` of layer 2 would be "
        "0.35550906759096934, not 0.4707130183435842"
    )


def test_bytes_are_copied_and_companions_come_along(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", dtype=torch.bfloat16, shard="10KB")
    (folder / "tokenizer.json").write_text("{}")
    layer_dropping.cut(folder, [2], tmp_path / "cut")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    with CheckpointReader(folder) as source, CheckpointReader(tmp_path / "cut") as cut:
        assert {name for name in cut.names() if ".layers." not in name} == {
            name for name in source.names() if ".layers." not in name
        }
        for name in cut.names():
            assert torch.equal(cut.read(name), source.read(name.replace("layers.0.", "layers.2.")))


def test_it_is_repeatable_and_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "model", "llama")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(derived, "copy_companions", fail)
        with pytest.raises(KeyboardInterrupt):
            layer_dropping.cut(folder, [0, 1], tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    layer_dropping.cut(folder, [0, 1], tmp_path / "cut")
    first = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "cut").iterdir()}
    layer_dropping.cut(folder, [0, 1], tmp_path / "cut")
    layer_dropping.cut(folder, [0, 1], tmp_path / "again")
    for out in (tmp_path / "cut", tmp_path / "again"):
        assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()} == first
    assert not list(tmp_path.glob(".*"))


def test_lists_with_an_entry_for_each_layer() -> None:
    source = {
        "architectures": ["A", "B", "C", "D"], "n_layers": 4, "layer_types": ["a", "b", "c", "d"],
        "no_rope_layers": [1, 1, 1, 0], "eos_token_id": [1, 2, 3, 4], "max_window_layers": 2, "vocab_size": 9,
        "num_kv_shared_layers": 2,
    }  # fmt: skip
    assert layer_selection.config(ModelConfig.of(source), [1, 3]) == source | {
        "n_layers": 2, "layer_types": ["b", "d"], "no_rope_layers": [1, 0], "max_window_layers": 1,
        "num_kv_shared_layers": 1,
    }  # fmt: skip
    derived = {"layer_types": ["w", "x", "y", "z"], "pad": None}
    assert layer_selection.config(ModelConfig.of({"num_layers": 4, "layer_types": None}), [0, 3], derived) == {
        "num_layers": 2, "layer_types": ["w", "z"],
    }  # fmt: skip
    neo = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    cut = layer_selection.config(ModelConfig.of(neo), [1, 2], {"attention_layers": ["global", "local"] * 2})
    assert cut["attention_types"] == [[["local", "global"], 1]]


def test_which_layers_stay() -> None:
    assert layer_selection.evenly(4, 6) == [0, 2, 3, 5]
    assert layer_selection.evenly(2, 32) == [0, 31]
    assert layer_selection.evenly(1, 6) == [0]
    assert all(layer_selection.evenly(n, n) == list(range(n)) for n in range(1, 9))
    assert all(len(set(layer_selection.evenly(k, n))) == k for n in range(1, 20) for k in range(1, n + 1))
    assert layer_selection.most_influential(3, [0.5, 0.1, 0.3, 0.1, 0.9]) == [0, 2, 4]
    assert layer_selection.most_influential(2, [0.2, 0.2, 0.2]) == [0, 1]
    assert layer_selection.spread(2, 6) == [(0, 2), (1, 5)]
    assert layer_selection.spread(4, 4) == [(i, i) for i in range(4)]
    assert layer_selection.spread(3, 2)[-1] == (2, 1)


def measuring(host: Host, after: int = 0) -> StreamRun:
    folder = host.scratch_dir / "influence"
    return StreamRun(folder, host.out_dir.parent / "influence.json", hooks(host), after=after)


def test_influence_is_that_of_a_plain_forward(tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", "llama"), tokens()
    host = Host(tmp_path, "evaluate.perplexity", folder, ids)
    found = layer_dropping.influence(folder, ids, "cpu", measuring(host, after=2))
    model, states = model_of(folder), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, given: states.append(given[0].double()))
    model.model.norm.register_forward_pre_hook(lambda module, given: states.append(given[0].double()))
    with torch.no_grad():
        model(input_ids=ids)
    expected = []
    for before, after in pairwise(states):
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        expected.append(1 - float(cosine.mean()))
    assert found == pytest.approx(expected, rel=1e-4)
    assert [(e["layer"], e["layers"]) for e in host.events] == [(1, 5), (2, 5), (3, 5)]
    assert list((host.scratch_dir / "influence").iterdir()) == []  # the hidden states are gone


def test_influence_is_measured_once(tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", "llama"), tokens()
    stopped = Host(tmp_path, "evaluate.perplexity", folder, ids, stop_after=1)
    with pytest.raises(Interrupted):
        layer_dropping.influence(folder, ids, "cpu", measuring(stopped))
    host = Host(tmp_path, "evaluate.perplexity", folder, ids)
    found = layer_dropping.influence(folder, ids, "cpu", measuring(host))
    assert host.layers() == [2, 3]
    assert len(found) == 3
    assert layer_dropping.influence(folder, ids, "cpu", measuring(host)) == found
    assert host.layers() == [2, 3]
    whole = Host(tmp_path / "whole", "evaluate.perplexity", folder, ids)
    assert layer_dropping.influence(folder, ids, "cpu", measuring(whole)) == found


def test_losses_without_a_layer_are_those_of_plain_forwards(tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", "llama"), tokens()
    stopped = Host(tmp_path, "evaluate.perplexity", folder, ids, stop_after=1)
    with pytest.raises(Interrupted):
        layer_dropping.losses_without(folder, ids, "cpu", measuring(stopped))
    host = Host(tmp_path, "evaluate.perplexity", folder, ids)
    found = layer_dropping.losses_without(folder, ids, "cpu", measuring(host))
    assert host.layers() == [2, 3]
    expected = []
    for keep in ([1, 2], [0, 2], [0, 1], [0, 1, 2]):
        logits = logits_without(folder, keep, ids)[:, :-1].flatten(0, 1)
        expected.append(float(nn.functional.cross_entropy(logits, ids[:, 1:].flatten())))
    assert found == pytest.approx(expected, rel=1e-5)
    assert layer_dropping.losses_without(folder, ids, "cpu", measuring(host)) == found
    assert host.layers() == [2, 3]
    assert list((host.scratch_dir / "influence").iterdir()) == []
