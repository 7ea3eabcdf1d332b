"""OWL: the sparsities that outliers give the layers, in the formula and in a pruned model, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contracts.context import DataFacts
from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps import owl
from runner.steps.kinds import find
from tests.host import Host
from tests.model.layerwise.test_engine import digests
from tests.tiny import save, tokens


def test_layers_with_more_outliers_keep_more_and_the_mean_stays() -> None:
    found = owl.sparsities([0.02, 0.06, 0.01, 0.03], sparsity=0.6, spread=0.08)
    assert sum(found) / 4 == pytest.approx(0.6)
    assert sorted(range(4), key=lambda layer: found[layer]) == [1, 3, 0, 2]
    assert max(found) - min(found) == pytest.approx(0.16)
    assert owl.sparsities([0.1, 0.1], 0.5, 0.08) == [0.5, 0.5]


def outliers_in_one_layer(tmp_path: Path) -> Path:
    """A model whose second layer has a few very large weights."""
    folder = save(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.startswith("model.layers.1.") and weight.ndim == 2:
            weight[:, ::8] *= 30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["prune.wanda", "prune.sparsegpt"])
def test_a_layer_with_outliers_is_pruned_less(kind: str, tmp_path: Path) -> None:
    folder = outliers_in_one_layer(tmp_path)
    host = Host(tmp_path / "step", kind, folder, tokens(), sparsity=0.5, allocation="owl")
    result = find(kind).run(host)
    shares = [layer["modules"]["model.layers.{}.mlp.down_proj".format(layer["layer"])]["sparsity"]
              for layer in result.details["layers"]]  # fmt: skip
    assert shares[1] < min(shares[0], shares[2]) - 0.08
    assert result.metrics["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_an_interrupted_step_measures_once_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = outliers_in_one_layer(tmp_path)
    params: dict[str, Any] = {"sparsity": 0.5, "allocation": "owl"}
    whole = Host(tmp_path / "whole", "prune.wanda", folder, tokens(), **params)
    find("prune.wanda").run(whole)
    first = Host(tmp_path / "resumed", "prune.wanda", folder, tokens(), stop_after=1, **params)
    with pytest.raises(Interrupted):
        find("prune.wanda").run(first)
    second = Host(tmp_path / "resumed", "prune.wanda", folder, tokens(), **params)
    find("prune.wanda").run(second)
    assert second.layers() == [2, 3]
    assert digests(second.out_dir) == digests(whole.out_dir)


def test_the_share_of_outliers_is_that_of_the_scores() -> None:
    from runner.model.layerwise.method import Linear, Statistics

    weight = torch.tensor([[1.0, 1.0, 1.0, 20.0], [1.0, 0.0, 1.0, 1.0]])
    linear = Linear(("x",), weight, torch.float32)
    done = owl.outlier_share(linear, Statistics(1, input_norms=torch.ones(4)), {"owl_threshold": 5})
    assert done.metrics == {"outliers": 1 / 8}
    assert done.weight is weight


def test_contradictions_are_refused(tmp_path: Path) -> None:
    given = facts(save(tmp_path / "model", "llama"), "model")
    inputs = Inputs(given, {}, {"data": DataFacts("d", 64, 8, 10_000, "0")}, machine_facts("cpu"))
    params = defaults(
        "prune.wanda", {"data": "d", "sparsity": 0.1, "allocation": "owl", "per_layer": {"*.layers.1.*": 0.2}}
    )
    found = find("prune.wanda").check(params, inputs)
    assert [(each.code, each.message, each.help) for each in found] == [
        ("R633", "`allocation: owl` may move the `sparsity` 0.1 of a layer by 0.16, beyond 0 or 1",
         "use a smaller `owl_range`"),
        ("R633", "`per_layer` and `allocation: owl` both decide the sparsity of layers", "leave one of them out"),
    ]  # fmt: skip


def test_the_metric_is_the_share_of_all_weights(tmp_path: Path) -> None:
    """Not the mean over modules, of which small ones would count as much as large ones."""
    folder = save(tmp_path / "model", "llama")
    overrides = {"*.down_proj": {"sparsity": 0.9}, "*.k_proj": {"sparsity": 0.2}}
    host = Host(tmp_path / "step", "prune.magnitude", folder, sparsity=0.5, overrides=overrides)
    result = find("prune.magnitude").run(host)
    weights = load_file(host.out_dir / "model.safetensors")
    pruned = [weights[f"{name}.weight"] for layer in result.details["layers"] for name in layer["modules"]]
    zeros = sum(int((weight == 0).sum()) for weight in pruned)
    assert result.metrics["sparsity"] == pytest.approx(zeros / sum(weight.numel() for weight in pruned), abs=1e-6)
