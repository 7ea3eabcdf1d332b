"""`dense: auto` of `build.gguf`: what it chooses, against all assignments of a tiny model, and what it refuses."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts.sensitivity import Group, Sensitivity, SiteFacts
from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted
from runner.export import gguf_assignment
from runner.export.gguf_tensors import Entry
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.steps.build import gguf_models

gguf = pytest.importorskip("gguf")
AUTO: dict[str, Any] = {"dense": "auto", "candidates": ["q4_0", "q5_0", "q8_0"], "embedding": "f16"}
SIZES = {"q4_0": 4.5, "q5_0": 5.5, "q8_0": 8.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_models.model(tmp_path_factory.mktemp("model"))


def ids() -> torch.Tensor:
    return tiny.tokens(2, 24, 4096)


def tensors(folder: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


def test_types_within_a_budget(tmp_path: Path, model: Path) -> None:
    """The loss is the relative error of what the file holds, weighed by inputs; no exchange of two types is better."""
    folder, result = gguf_models.built(tmp_path, model, ids(), budget={"average_bits": 5.2}, **AUTO)
    assignment = result.details["assignment"]
    made = tensors(folder)
    assert {name: made[name].tensor_type.name.lower() for name in assignment["types"]} == assignment["types"]
    assert len(assignment["types"]) == 3 * 7
    weights = {name: made[name].n_elements for name in assignment["types"]}
    bits = sum(SIZES[type] * weights[name] for name, type in assignment["types"].items()) / sum(weights.values())
    assert assignment["average_bits"] == round(bits, 4) <= 5.2
    host = Host(tmp_path / "gguf", "build.gguf", model)
    errors = json.loads((host.scratch_dir / "errors.json").read_text())
    order = list(SIZES)
    lost = sum(errors[name][order.index(type)][0] for name, type in assignment["types"].items())
    assert assignment["loss"] == pytest.approx(lost, rel=1e-9)
    room = 5.2 * sum(weights.values()) - bits * sum(weights.values())
    for one, other in itertools.permutations(assignment["types"], 2):
        up, down = (order.index(assignment["types"][name]) for name in (one, other))
        if up + 1 < 3 and down > 0:
            grown = (SIZES[order[up + 1]] - SIZES[order[up]]) * weights[one]
            shrunk = (SIZES[order[down]] - SIZES[order[down - 1]]) * weights[other]
            change = errors[one][up + 1][0] - errors[one][up][0] + errors[other][down - 1][0] - errors[other][down][0]
            assert grown - shrunk > room or change >= -1e-12


def test_the_error_of_a_type_is_that_of_its_file(tmp_path: Path, model: Path) -> None:
    """Read back by the gguf package, with the inputs that transformers' own model has."""
    from transformers import AutoModelForCausalLM

    gguf_models.built(tmp_path, model, ids(), budget={"average_bits": 5.2}, **AUTO)
    errors = json.loads((Host(tmp_path / "gguf", "build.gguf", model).scratch_dir / "errors.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    module, seen = loaded.model.layers[1].mlp.down_proj, []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        loaded(ids())
    energy = torch.cat(seen).square().mean(0).numpy()
    folder, _ = gguf_models.built(tmp_path / "plain", model, ids(), dense="q5_0", embedding="f16")
    stored = tensors(folder)["blk.1.ffn_down.weight"]
    weight = module.weight.detach().numpy()
    lost = ((gguf.dequantize(stored.data, stored.tensor_type) - weight) ** 2 * energy).sum()
    assert errors["blk.1.ffn_down.weight"][1][0] == pytest.approx(lost / (weight**2 * energy).sum(), rel=1e-3)


def test_an_interrupted_run_measures_the_rest(tmp_path: Path, model: Path) -> None:
    class Stopping(Host):
        def safe_point(self) -> None:
            if sum(event.get("phase") == "errors of types" for event in self.events) == 5:
                raise Interrupted("stopped")

    params = {**AUTO, "budget": {"average_bits": 5.2}}
    host = Host(tmp_path / "gguf", "build.gguf", model, ids(), **params)
    host.__class__ = Stopping
    with pytest.raises(Interrupted):
        find("build.gguf").run(host)
    errors = json.loads((host.scratch_dir / "errors.json").read_text())
    assert len(errors) == 5
    errors["blk.0.attn_q.weight"][0] = [1e3]  # would be measured again if it were not taken from there
    (host.scratch_dir / "errors.json").write_text(json.dumps(errors))
    again = Host(tmp_path / "gguf", "build.gguf", model, ids(), **params)
    found = find("build.gguf").run(again)
    assert found.details["assignment"]["types"]["blk.0.attn_q.weight"] != "q4_0"
    assert len(json.loads((host.scratch_dir / "errors.json").read_text())) == 21


def test_a_measurement_weighs_errors() -> None:
    """Two matrices of equal errors: the one whose group the model feels more gets the larger type."""
    entries = tuple(
        Entry(f"blk.{n}.ffn_up.weight", (f"model.layers.{n}.mlp.up_proj.weight",), (32, 256), "q8_0", "auto")
        for n in range(2)
    )
    params = {"dense": "auto", "candidates": ["q4_k", "q8_0"], "budget": {"average_bits": 6.6}}
    found = gguf_assignment.choices(params, [*entries, Entry("output_norm.weight", ("x",), (256,), "f32", "f32")])
    assert (found.options, found.fixed) == ((("q4_k", "q8_0"),) * 2, 1024)
    errors = {entry.name: [[0.01], [0.0001]] for entry in entries}

    def measured(*losses: float) -> Sensitivity:
        def group(n: int, loss: float) -> Group:
            site = SiteFacts(8192, 10, {"4": 0.02, "8": 0.0002})
            return Group({f"model.layers.{n}.mlp.up_proj": site}, n, {"4": loss, "8": loss / 100})

        return Sensitivity("gradient", "nats", {}, tuple(group(n, loss) for n, loss in enumerate(losses)))

    for losses, wanted in (((0.5, 0.4), ["q8_0", "q4_k"]), ((0.4, 0.5), ["q4_k", "q8_0"])):
        chosen = gguf_assignment.assign(params, found, errors, measured(*losses))
        assert list(chosen.types.values()) == wanted
        assert chosen.loss == pytest.approx(max(losses) * 0.005 + min(losses) * 0.5)
        assert (chosen.unit, chosen.average_bits) == ("nats", 6.5)


def complaints(model: Path, **params: Any) -> list[tuple[str, str, str | None]]:
    checkpoint = facts(model, "demo")
    measured = params.pop("measured", None)
    others = {"sensitivity": replace(checkpoint, measured=measured)} if measured else {}
    step = Host(model.parent / "check", "build.gguf", model, **params)
    found = find("build.gguf").check(step.params, Inputs(checkpoint, others, {}, machine_facts("cpu"), 1))
    return [(each.code, each.message, each.help) for each in found]


def test_complaints(model: Path) -> None:
    auto = {**AUTO, "data": "text"}
    assert complaints(model, **auto, budget={"average_bits": 5.2}) == []
    assert complaints(model, dense="q4_0", budget={"average_bits": 5.2}) == [
        ("R853", "`budget` belongs to `dense: auto`, and `dense` is q4_0", "leave it out, or set `dense: auto`"),
    ]  # fmt: skip
    assert complaints(model, dense="auto") == [
        ("R853", "`dense: auto` needs `data` and `budget`",
         "name a calibration text, and a budget such as `{average_bits: 4.5}`"),
    ]  # fmt: skip
    assert complaints(model, **auto, budget={"average_bits": 4.4}) == [
        ("R854", "`average_bits: 4.4` is less than any assignment takes: the smallest candidates are 4.5",
         "set `average_bits` to 4.5 or more, or give smaller candidates"),
    ]  # fmt: skip
    assert complaints(model, **auto, budget={"bytes": "1GB"}) == [
        ("R855", "`bytes: 1GB` allows the largest candidate everywhere, which is 1.19MB",
         "set a budget below that, or `dense` to a type"),
    ]  # fmt: skip
    few = {"sites": ("model.layers.0.self_attn.q_proj",)}
    assert complaints(model, **auto, budget={"average_bits": 5.2}, sensitivity="delicate", measured=few) == [
        ("R856", "`delicate` did not measure `model.layers.0.self_attn.k_proj` and 19 more",
         "measure the checkpoint that this step takes, with `ignore: [lm_head]` alone"),
    ]  # fmt: skip
