"""`prune.depth`: the cut that `distill.` makes as a step of its own, what it measures, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted, RecipeError
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.plan.resolve_inputs import described
from runner.recipe.load import loads
from runner.steps.prune import depth
from runner.training import layer_dropping
from tests.host import Host
from tests.steps.transform import checkpoints
from tests.steps.transform.checkpoints import digests
from tests.tiny import save, tokens


def pruned(folder: Path, checkpoint: Path, **params: Any) -> tuple[Host, Any]:
    host = Host(folder, "prune.depth", checkpoint, tokens(), **params)
    return host, depth.run(host)


@pytest.mark.parametrize("choose", ["influence", "perplexity", "even"])
def test_it_writes_the_cut_of_distillation(choose: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "qwen2", num_hidden_layers=4)
    host, result = pruned(tmp_path / "step", folder, drop=0.25, choose=choose)
    keep = result.details["kept_layers"]
    layer_dropping.cut(folder, keep, tmp_path / "cut")
    found, expected = (load_file(path / "model.safetensors") for path in (host.out_dir, tmp_path / "cut"))
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)
    assert (host.out_dir / "config.json").read_bytes() == (tmp_path / "cut" / "config.json").read_bytes()
    [dropped] = result.details["dropped_layers"]
    assert sorted([*keep, dropped]) == [0, 1, 2, 3]
    if choose == "influence":
        assert dropped == min(range(4), key=result.details["influence"].__getitem__)
        assert result.metrics["influence_dropped"] == result.details["influence"][dropped]
    if choose == "perplexity":
        assert dropped == min(range(4), key=result.details["perplexity_without"].__getitem__)
    assert result.metrics["layers"] == 3
    assert result.metrics["bytes"] == sum(tensor.numel() * 4 for tensor in found.values())
    fates = result.account.fates
    assert {n for n, fate in fates.items() if fate.fate == "dropped"} == {n for n in fates if f".{dropped}." in n}


def test_layers_are_named_and_shards_have_a_size(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    host, result = pruned(tmp_path / "step", folder, drop=[1], max_shard_size="20KB")
    assert result.details["kept_layers"] == [0, 2]
    index = json.loads((host.out_dir / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in host.out_dir.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards
    assert len(shards) > 2
    assert index["metadata"]["total_size"] == result.metrics["bytes"]
    other, _ = pruned(tmp_path / "other", folder, keep=[0, 2])
    ids = tokens()
    assert (checkpoints.logits(host.out_dir, ids) == checkpoints.logits(other.out_dir, ids)).all()


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    whole, _ = pruned(tmp_path / "whole", folder, drop=1)
    with pytest.raises(Interrupted):
        depth.run(Host(tmp_path / "stopped", "prune.depth", folder, tokens(), 1, drop=1))
    again, _ = pruned(tmp_path / "stopped", folder, drop=1)
    assert again.layers() == [2, 3]
    assert digests(whole.out_dir) == digests(again.out_dir)


def inputs_of(folder: Path) -> Inputs:
    data = {"data": DataFacts("d", 6, 24, 999, "0")}
    return Inputs(described(facts(folder, str(folder)), folder), {}, data, machine_facts("cpu"))


def test_the_plan_accounts_for_what_is_written(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    host, result = pruned(tmp_path / "step", folder, drop=1)
    inputs = inputs_of(folder)
    assert depth.check(host.params, inputs) == []
    foretold = depth.outcome(host.params, inputs)
    assert {n: t.shape for n, t in foretold.tensors.items()} == {
        n: t.shape for n, t in facts(host.out_dir, "cut").tensors.items()
    }
    moved = {name for name, fate in result.account.fates.items() if fate.names not in ((name,), ())}
    assert moved <= depth.changes(host.params, inputs)
    assert depth.estimate(host.params, inputs).disk == result.metrics["bytes"]
    tried = {**host.params, "choose": "perplexity"}
    assert depth.estimate(tried, inputs).scratch == 4 * depth.estimate(host.params, inputs).scratch


def refused(given: Inputs, **params: Any) -> tuple[str, str, str, tuple[str | int, ...]]:
    written = {"choose": "influence", "data": "calibration", **params}
    [found] = depth.check(written, given)
    return found.code, found.message, found.help or "", tuple(found.path or ())


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    given = inputs_of(save(tmp_path / "model", "llama"))
    expected = {
        "drop": (3, "`drop` leaves 0 of 3 decoder layers", "leave 1 to 2", ("drop",)),
        "keep": (3, "`keep` leaves 3 of 3 decoder layers", "leave 1 to 2", ("keep",)),
    }
    for key, (value, message, help, path) in expected.items():
        assert refused(given, **{key: value}) == ("R805", message, help, path)
    assert refused(given, drop=0.1) == ("R805", "`drop` leaves 3 of 3 decoder layers", "leave 1 to 2", ("drop",))
    assert refused(given, drop=[1, 7]) == (
        "R805", "`drop` names layer 7; the checkpoint has the layers 0 to 2", "layers count from 0", ("drop", 1),
    )  # fmt: skip
    assert refused(given, keep=[2, 0, 2]) == (
        "R805", "`keep` must name each layer once, in rising order; got [2, 0, 2]", "write [0, 2]", ("keep",),
    )  # fmt: skip
    assert refused(given, drop=1, data=None) == (
        "R808", "`choose: influence` measures layers on text, and the step names no `data`",
        "name an entry of `data`, or the layers", ("choose",),
    )  # fmt: skip


UNKNOWN = "so that no plan can tell which tensors are written before layers are measured"
OTHERS = "leave the step out, or use `prune.width`"


def test_models_that_cannot_have_fewer_layers(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "gpt2")
    given = inputs_of(folder)

    def cannot(model_type: str = "gpt2", **changes: Any) -> tuple[str, str, str, tuple[str | int, ...]]:
        raw = {**given.checkpoint.config.raw, **changes}
        config = replace(given.checkpoint.config, raw=raw, model_type=model_type)
        return refused(replace(given, checkpoint=replace(given.checkpoint, config=config)), drop=1)

    what = f"layers of `{folder}` (`gpt2`) cannot be left out: "
    assert cannot(scale_attn_by_inverse_layer_idx=True) == (
        "R806", f"{what}the model scales attention by the number of a layer", OTHERS, (),
    )  # fmt: skip
    assert cannot(moe_layer_interval=2) == (
        "R806", f"{what}the model makes one of every 2 layers another (`moe_layer_interval`)", OTHERS, (),
    )  # fmt: skip
    description = given.checkpoint.description
    assert description is not None
    shared = replace(given.checkpoint, description=replace(description, hands_state=True))
    assert refused(replace(given, checkpoint=shared), drop=1) == (
        "R806", f"{what}they hand one another keys and values", OTHERS, (),
    )  # fmt: skip


def test_layers_with_different_tensors_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    given = inputs_of(folder)
    tensors = {n: t for n, t in given.checkpoint.tensors.items() if n != "model.layers.1.mlp.up_proj.weight"}
    uneven = replace(given, checkpoint=replace(given.checkpoint, tensors=tensors))
    assert refused(uneven, drop=1) == (
        "R807", f"layers 0 and 1 of `{folder}` hold different tensors, {UNKNOWN}",
        "name the layers: `keep: [0, 1, …]` or `drop: [5, …]`", ("drop",),
    )  # fmt: skip
    assert depth.check({"drop": [1], "choose": "influence"}, uneven) == []


LAYERS = "a number of layers, 1 or more, a share between 0 and 1, or a list of layer numbers counted from 0"


def test_forms_of_the_parameters() -> None:
    head = "version: 1\nname: x\nmodel: {source: demo:tiny-llama}\nsteps:\n  - prune.depth: "
    for written, expected in (
        ("{choose: even}", "`prune.depth` must be a mapping with either `keep` or `drop`; got `choose`"),
        ("{drop: 1, keep: 2}", "`prune.depth` must be a mapping with either `keep` or `drop`"),
        ("{drop: 0}", f"`drop` must be {LAYERS}; got 0"),
    ):  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            loads(head + written + "\n", "r.yaml")
        assert expected in caught.value.render()
