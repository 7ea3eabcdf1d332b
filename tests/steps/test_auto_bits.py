"""`bits: auto`: budgets, what is refused, and that it is the step that its assignment written out would be."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts import sensitivity
from runner.contracts.context import Artifact
from runner.contracts.lineage import Lineage
from runner.contracts.sensitivity import Sensitivity
from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import StepFailed
from runner.model.architecture import probe
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.headers import read_headers
from runner.model.layerwise.describe import describe
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps import assignment, automatic
from runner.steps.kinds import find, unsettled
from tests.host import Host
from tests.model.layerwise.test_engine import digests
from tests.model.layerwise.test_final_hidden import plain_logits, streamed_logits
from tests.steps.test_experts import host as mixture_host
from tests.steps.test_experts import saved as mixture
from tests.sweep import IDS
from tests.tiny import save, tokens

GROUPED: dict[str, Any] = {"group_size": 16}
BUDGET = {"average_bits": 4.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sensitivity of the model to 2, 3, 4 and 8 bits."""
    host = Host(tmp_path_factory.mktemp("measured"), "analyze.sensitivity", folder, tokens(), **GROUPED)
    find("analyze.sensitivity").run(host)
    return host.out_dir


def inputs(folder: Path, result: Path | None = None, **params: Any) -> Inputs:
    """The inputs of a step that reads a measurement with these params; `result` is that, where it is there."""
    own, machine = facts(folder, "model"), machine_facts("cpu")
    data = {"data": DataFacts("calibration", 6, 24, 0, "")}
    asked = defaults("analyze.sensitivity", {"data": "calibration", **GROUPED, **params})
    about = find("analyze.sensitivity").outcome(asked, Inputs(own, {}, data, machine))
    if result is not None:
        about = replace(about, measured={**(about.measured or {}), "result": sensitivity.read(result)})
    return Inputs(own, {"sensitivity": about}, data, machine)


def params(kind: str = "quantize.rtn", **changes: Any) -> dict[str, Any]:
    asked = {"bits": "auto", "sensitivity": "delicate", "budget": BUDGET, **GROUPED, **changes}
    return defaults(kind, {name: value for name, value in asked.items() if value is not None})


def host(tmp_path: Path, folder: Path, measured: Path, kind: str = "quantize.rtn", **changes: Any) -> Host:
    own = params(kind, **changes)
    ids = tokens() if kind != "quantize.rtn" else None
    return Host(tmp_path, kind, folder, ids, others={"sensitivity": measured}, **own)


def complaints(given: Inputs, **changes: Any) -> list[str]:
    found = find("quantize.rtn").check(params(**changes), given)
    return [f"{d.severity}[{d.code}] {'.'.join(map(str, d.path))}: {d.message}; {d.help}" for d in found]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"budget": None},
        (
            "error[R811] bits: `bits: auto` needs `budget`; "
            "name a step of `analyze.sensitivity`, and a budget such as `{average_bits: 3.5}`"
        ),
    ),
    (
        {"sensitivity": None, "budget": None},
        (
            "error[R811] bits: `bits: auto` needs `sensitivity` and `budget`; "
            "name a step of `analyze.sensitivity`, and a budget such as `{average_bits: 3.5}`"
        ),
    ),
    (
        {"bits": 4},
        (
            "error[R811] sensitivity: `sensitivity` belongs to `bits: auto`, and `bits` is 4; "
            "leave it out, or set `bits: auto`"
        ),
    ),
    (
        {"scheme": "w4a16"},
        (
            "error[R811] scheme: `bits: auto` chooses the bits of integers, and `scheme: w4a16` has its own; "
            "leave one of them out"
        ),
    ),
    (
        {"budget": {"average_bits": 2}},
        (
            "error[R812] budget.average_bits: `average_bits: 2` is less than any assignment takes: "
            "2 bits everywhere are 4.098 with their scales; "
            "set `average_bits` to 4.098 or more, or give fewer bits as candidates"
        ),
    ),
    (
        {"budget": {"bytes": "30KB"}},
        (
            "error[R812] budget.bytes: `bytes: 30KB` is less than any assignment takes: "
            "2 bits everywhere are 0.04MB with everything else; "
            "set `bytes` to 0.04MB or more, or give fewer bits as candidates"
        ),
    ),
    (
        {"budget": {"max_loss": 0}},
        (
            "error[R812] budget.max_loss: `max_loss: 0` is less than any assignment loses: the best loses 0.000474; "
            "set `max_loss` to 0.000474 or more, or measure candidates with more bits"
        ),
    ),
    (
        {"budget": {"average_bits": 12}},
        (
            "warning[R815] budget.average_bits: `average_bits: 12` allows 8 bits everywhere, which are 10.098 with "
            "their scales; set a budget below that, or `bits` to a number"
        ),
    ),
    (
        {"group_size": 32},
        "error[R813] group_size: `group_size` is 32, and `delicate` measured with 16; give both steps the same",
    ),
    (
        {"symmetric": False},
        "error[R813] symmetric: `symmetric` is false, and `delicate` measured with true; give both steps the same",
    ),
    (
        {"candidates": [4]},
        (
            "error[R813] bits: `bits: auto` has one candidate, and nothing to choose; "
            "set `bits: 4`, or give more candidates"
        ),
    ),
    (
        {"overrides": {"*": {"bits": 4}}},
        (
            "error[R814] bits: `bits: auto` assigns nothing: `overrides` give every module its bits; "
            "set `bits` to a number"
        ),
    ),
    (
        {"overrides": {"model.layers.0.self_attn.q_proj": {"bits": 8}}},
        (
            "error[R814] bits: `delicate` measured `model.layers.0.self_attn.k_proj` and "
            "`model.layers.0.self_attn.q_proj` together, and only the first is assigned bits; "
            "servers store them alike: name both in `ignore` or `overrides`, or neither"
        ),
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_whole_messages(changes: dict[str, Any], message: str, folder: Path, measured: Path) -> None:
    assert complaints(inputs(folder, measured), **changes) == [message]


def test_candidates_and_modules_that_were_not_measured(folder: Path) -> None:
    assert complaints(inputs(folder, candidates=[2, 4]), candidates=[2, 3]) == [
        (
            "error[R813] candidates: `candidates` has 3, and `delicate` measured 2, 4; "
            "choose among those, or measure it too"
        )
    ]
    assert complaints(inputs(folder, ignore=["down_proj"])) == [
        (
            "error[R814] sensitivity: `delicate` did not measure `model.layers.0.mlp.down_proj` and 2 more; "
            "measure the checkpoint that this step takes, with the same `ignore`"
        )
    ]


def test_a_format_that_cannot_hold_a_candidate_is_refused_once(folder: Path) -> None:
    (found,) = complaints(inputs(folder), format="awq", symmetric=True)
    assert found.startswith("error[R411] group_size: 21 modules cannot be stored as asked")


def test_nothing_is_wrong_before_the_measurement_is_there(folder: Path) -> None:
    given = inputs(folder)
    assert complaints(given) == []
    assert complaints(given, budget={"max_loss": 0}) == []
    made = find("quantize.rtn").outcome(params(), given)
    groups = made.quantization["config_groups"] if made.quantization else {}
    assert {group["weights"]["num_bits"] for group in groups.values()} == {2, 3, 4, 8}  # readers must take each
    names = unsettled(find("quantize.rtn"), params(), given)
    assert names == {name for name in made.tensors if name.rpartition(".")[2] in
                     ("weight_packed", "weight_scale", "weight_shape")}  # fmt: skip


def test_the_assignment_is_the_best_of_all(folder: Path, measured: Path) -> None:
    own = params(candidates=[3, 8])
    given = facts(folder, "model")
    choices = assignment.problem(own, given, [3, 8])
    known = sensitivity.read(measured)
    lost = assignment.losses(known, choices)
    found = assignment.assign({**own, "budget": {"average_bits": 7}}, choices, known)
    limit = 7 * choices.weights / 8
    best = min(
        sum(row[pick] for row, pick in zip(lost, picks, strict=True))
        for picks in itertools.product((0, 1), repeat=len(choices.groups))
        if sum(row[pick] for row, pick in zip(choices.costs, picks, strict=True)) <= limit
    )
    assert found.loss == pytest.approx(best)
    assert found.average <= 7
    assert found.average == pytest.approx(8 * found.cost / choices.weights)


def test_of_equally_small_assignments_a_limit_on_the_loss_gets_the_best(folder: Path, measured: Path) -> None:
    known, given = sensitivity.read(measured), facts(folder, "model")
    choices = assignment.problem(params(), given, [2, 3, 4, 8])
    small = assignment.assign({**params(), "budget": {"max_loss": 0.5}}, choices, known)
    assert small.loss <= 0.5
    within = {"bytes": f"{(choices.fixed + small.cost) / 1000:.3f}KB"}
    assert assignment.assign({**params(), "budget": within}, choices, known) == small
    with pytest.raises(StepFailed) as failed:
        assignment.assign({**params(), "budget": {"max_loss": 1e-9}}, choices, known)
    assert failed.value.message == "`max_loss: 1e-09` is less than any assignment loses: the best loses 0.000474"
    assert failed.value.help == "set `max_loss` to 0.000474 or more, or measure candidates with more bits"


@pytest.mark.parametrize("kind", ["quantize.rtn", "quantize.gptq", "quantize.signround"])
def test_it_is_the_step_that_its_assignment_written_out_would_be(
    kind: str, folder: Path, measured: Path, tmp_path: Path
) -> None:
    few: dict[str, Any] = {"steps": 2} if kind == "quantize.signround" else {}
    budget = {"average_bits": 6}
    auto = host(tmp_path / "auto", folder, measured, kind, budget=budget, **few)
    result = find(kind).run(auto)
    assigned = result.details["assignment"]
    assert len(assigned["bits"]) == 21
    assert len(set(assigned["bits"].values())) > 1
    assert assigned["average_bits"] <= 6
    headers = read_headers(auto.out_dir)
    assert sum(header.nbytes for header in headers.values()) == assigned["bytes"]
    overrides = {name: {"bits": bits} for name, bits in assigned["bits"].items()}
    ids = None if kind == "quantize.rtn" else tokens()
    plain = Host(tmp_path / "plain", kind, folder, ids, **GROUPED, **few, overrides=overrides)
    find(kind).run(plain)
    ours, theirs = digests(auto.out_dir), digests(plain.out_dir)
    assert {name: ours[name] for name in ours if name.endswith(".safetensors")} == {
        name: theirs[name] for name in theirs if name.endswith(".safetensors")
    }
    config = json.loads((auto.out_dir / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"] for group in config["config_groups"].values()} == set(
        assigned["bits"].values()
    )
    given = inputs(folder, measured)
    own = params(kind, budget=budget, data="calibration", **few)
    planned = find(kind).outcome(own, given)  # the measurement is known: the plan is exact
    assert {name: header.shape for name, header in headers.items()} == {
        name: tuple(header.shape) for name, header in planned.tensors.items()
    }
    assert unsettled(find(kind), own, given) == frozenset()
    if kind == "quantize.gptq":
        loaded = plain_logits(auto.out_dir, tokens(), torch.float32)
        assert (streamed_logits(auto.out_dir, tokens(), tmp_path / "scratch") - loaded).abs().max() < 1e-3


def test_modules_with_choices_of_their_own_count_and_stay(folder: Path, measured: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"overrides": {"down_proj": {"bits": 8}}, "budget": {"average_bits": 7}}
    step = host(tmp_path, folder, measured, **own)
    result = find("quantize.rtn").run(step)
    assigned = result.details["assignment"]
    assert not any("down_proj" in name for name in assigned["bits"])
    modules = {name: each for layer in result.details["layers"] for name, each in layer["modules"].items()}
    assert {each["bits"] for name, each in modules.items() if "down_proj" in name} == {8}
    headers = read_headers(step.out_dir)
    quantized = sum(header.nbytes for name, header in headers.items() if ".weight_" in name)
    weights = sum(site.size for site in facts(folder, "model").sites)
    assert 8 * quantized / weights == pytest.approx(assigned["average_bits"], abs=1e-4)
    assert assigned["average_bits"] <= 7


def test_the_experts_of_a_layer_get_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_answer", describe)
    given = mixture(tmp_path / "model", "mixtral")
    sensitive = mixture_host(given, tmp_path / "measured", "analyze.sensitivity", IDS, group_size=8, candidates=[2, 4])
    find("analyze.sensitivity").run(sensitive)
    own = params(group_size=8, budget={"average_bits": 7}, grid="mse")
    step = mixture_host(given, tmp_path / "step", "quantize.rtn", None, **own)
    measured = Artifact(sensitive.out_dir, "metrics", "0" * 64, Lineage("a local model"))
    step.inputs = {**step.inputs, "sensitivity": measured}
    assigned = find("quantize.rtn").run(step).details["assignment"]
    by_layer: dict[str, set[int]] = {}
    for name, bits in assigned["bits"].items():
        if ".experts." in name:
            by_layer.setdefault(name.partition(".experts.")[0], set()).add(bits)
    assert all(len(bits) == 1 for bits in by_layer.values())
    headers = read_headers(step.out_dir)
    assert sum(header.nbytes for header in headers.values()) == assigned["bytes"]
    assert assigned["average_bits"] <= 7
    assert len(set(assigned["bits"].values())) == 2


def test_a_running_step_says_what_it_assigned(folder: Path, measured: Path, tmp_path: Path) -> None:
    step = host(tmp_path, folder, measured, budget={"max_loss": 1.0})
    settled, details = automatic.settled(step, facts(folder, "model"))
    assert "sensitivity" not in settled
    counts = sorted(details["assignment"]["bits"].values())
    assert counts
    (said,) = [event["text"] for event in step.events if event["event"] == "message"]
    assert said.startswith("assigned ")
    assert said.endswith(f"forecast loss {details['assignment']['loss']:.4g}")


def test_a_measurement_round_trips(measured: Path) -> None:
    found = sensitivity.read(measured)
    assert Sensitivity.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="schema 2 is not 1"):
        Sensitivity.from_json({**found.to_json(), "schema": 2})
