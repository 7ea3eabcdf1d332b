"""`sparsity: auto`: the best sparsities within a budget, what is refused, and that the step is that of `per_layer`."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contracts import sensitivity
from runner.contracts.sites import Site
from runner.contracts.step_kind import DataFacts, Inputs
from runner.methods import pruning_masks
from runner.model.architecture.inspect import facts
from runner.model.layerwise.method import Linear, Statistics
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps import assignment
from runner.steps.kinds import find
from runner.steps.sensitivity_measures import SiteMeasure, measure_site
from runner.steps.site_groups import groups
from tests.host import Host
from tests.model.layerwise.test_engine import digests
from tests.tiny import save, tokens

SPARSITIES = [0.25, 0.5, 0.75]
BUDGET = {"average_sparsity": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    host = Host(tmp_path_factory.mktemp("measured"), "analyze.sensitivity", folder, tokens(), sparsities=SPARSITIES)
    find("analyze.sensitivity").run(host)
    return host.out_dir


def inputs(folder: Path, result: Path | None = None, **params: Any) -> Inputs:
    """The inputs of a step that reads a measurement with these params; `result` is that, where it is there."""
    own, machine = facts(folder, "model"), machine_facts("cpu")
    data = {"data": DataFacts("calibration", 6, 24, 0, "")}
    asked = defaults("analyze.sensitivity", {"data": "calibration", "sparsities": SPARSITIES, **params})
    about = find("analyze.sensitivity").outcome(asked, Inputs(own, {}, data, machine))
    if result is not None:
        about = replace(about, measured={**(about.measured or {}), "result": sensitivity.read(result)})
    return Inputs(own, {"sensitivity": about}, data, machine)


def params(kind: str = "prune.wanda", **changes: Any) -> dict[str, Any]:
    asked = {"sparsity": "auto", "sensitivity": "delicate", "budget": BUDGET, "data": "calibration", **changes}
    if kind == "prune.magnitude":
        del asked["data"]
    return defaults(kind, {name: value for name, value in asked.items() if value is not None})


def complaints(given: Inputs, **changes: Any) -> list[str]:
    found = find("prune.wanda").check(params(**changes), given)
    return [f"{d.severity}[{d.code}] {'.'.join(map(str, d.path))}: {d.message}; {d.help}" for d in found]


def test_what_is_measured_is_the_error_that_zeros_leave(folder: Path, measured: Path) -> None:
    found = sensitivity.read(measured)
    assert list(found.candidates) == ["0.25", "0.5", "0.75"]
    assert all(len(group.sites) == 1 for group in found.groups)  # servers store zeros of fused modules as they come
    for group in found.groups:
        (site,) = group.sites.values()
        assert group.losses == site.errors
        assert 0 < group.losses["0.25"] < group.losses["0.5"] < group.losses["0.75"] < 1


def test_the_assignment_is_the_best_of_all(folder: Path, measured: Path) -> None:
    given, known = facts(folder, "model"), sensitivity.read(measured)
    own = params(per_layer={"*.layers.0.*": 0.5, "*.layers.1.*": 0.5, "*.self_attn.*": 0.5})
    choices = assignment.problem(own, given, SPARSITIES)
    lost = assignment.losses(known, choices)
    found = assignment.assign(own, choices, known)
    sizes = {site.name: site.size for site in given.sites}
    allowed = []
    for picks in itertools.product(range(3), repeat=len(choices.groups)):
        free = {group[0].name: SPARSITIES[pick] for group, pick in zip(choices.groups, picks, strict=True)}
        every = {name: free.get(name, 0.5) for name in sizes}
        if sum(sizes[name] * each for name, each in every.items()) >= 0.5 * sum(sizes.values()):
            allowed.append(sum(row[pick] for row, pick in zip(lost, picks, strict=True)))
    assert found.loss == pytest.approx(min(allowed))
    assert found.average >= 0.5


@pytest.mark.parametrize("kind", ["prune.magnitude", "prune.wanda", "prune.sparsegpt"])
def test_it_is_the_step_that_its_assignment_written_out_would_be(
    kind: str, folder: Path, measured: Path, tmp_path: Path
) -> None:
    ids = None if kind == "prune.magnitude" else tokens()
    step = Host(tmp_path / "auto", kind, folder, ids, others={"sensitivity": measured}, **params(kind))
    result = find(kind).run(step)
    assigned = result.details["assignment"]
    assert set(assigned["sparsity"].values()) == set(SPARSITIES)
    assert assigned["average_sparsity"] == pytest.approx(0.5, abs=0.02)
    plain = Host(tmp_path / "plain", kind, folder, ids, per_layer=assigned["sparsity"])
    find(kind).run(plain)
    weights = {name: digest for name, digest in digests(step.out_dir).items() if name.endswith(".safetensors")}
    assert weights == {name: digest for name, digest in digests(plain.out_dir).items() if name.endswith(".safetensors")}
    written = load_file(step.out_dir / "model.safetensors")
    for name, sparsity in assigned["sparsity"].items():
        assert pruning_masks.zero_share(written[f"{name}.weight"]) == pytest.approx(sparsity, abs=0.05)


def test_a_limit_on_the_loss_prunes_the_most_within_it(folder: Path, measured: Path) -> None:
    known, given = sensitivity.read(measured), facts(folder, "model")
    choices = assignment.problem(params(), given, SPARSITIES)
    middle = sum(group.losses["0.5"] for group in known.groups)
    found = assignment.assign({**params(), "budget": {"max_loss": middle}}, choices, known)
    assert found.loss <= middle
    assert found.average >= 0.5
    within = {"average_sparsity": math.floor(found.average * 1e6) / 1e6}
    assert assignment.assign({**params(), "budget": within}, choices, known) == found


def test_gradients_and_sparsegpt_measure_too(folder: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"sparsities": [0.5], "measure": "gradient"}
    host = Host(tmp_path / "wanda", "analyze.sensitivity", folder, tokens(), **asked)
    masked = find("analyze.sensitivity").run(host)
    host = Host(tmp_path / "gptq", "analyze.sensitivity", folder, tokens(), solver="gptq", **asked)
    solved = find("analyze.sensitivity").run(host)
    assert 0 < solved.metrics["loss/0.5"] < masked.metrics["loss/0.5"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": 0.5, "sensitivity": None},
     ("error[R811] budget: `budget` belongs to `sparsity: auto`, and `sparsity` is 0.5; leave it out, or set "
     "`sparsity: auto`")),
    ({"budget": None},
     ("error[R811] sparsity: `sparsity: auto` needs `budget`; name a step of `analyze.sensitivity`, and a budget such "
     "as `{average_sparsity: 0.5}`")),
    ({"budget": {"average_sparsity": 0.8}},
     ("error[R812] budget.average_sparsity: `average_sparsity: 0.8` is more than any assignment has: 0.75 everywhere "
     "is 0.75; set `average_sparsity` to 0.75 or less, or measure larger sparsities")),
    ({"budget": {"average_sparsity": 0.2}},
     ("warning[R815] budget.average_sparsity: `average_sparsity: 0.2` allows the least sparsity everywhere, which is "
     "0.25; set a budget above that, or `sparsity` to a number")),
    ({"per_layer": {"*": 0.5}},
     ("error[R814] sparsity: `sparsity: auto` assigns nothing: `per_layer` gives every module its own; set `sparsity` "
     "to a number")),
    ({"allocation": "owl"},
     ("error[R633] allocation: `sparsity: auto` and `allocation: owl` both decide the sparsity of layers; leave one of "
     "them out")),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_contradictions_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    assert complaints(inputs(folder), **changes) == [message]


def test_measurements_of_the_other_kind_are_refused(folder: Path) -> None:
    (found,) = complaints(inputs(folder, sparsities=[]))
    assert found == (
        "error[R813] sensitivity: `sparsity: auto` assigns sparsities, and `delicate` measured bits; measure "
        "`sparsities` in a step of its own"
    )
    own = defaults("quantize.rtn", {"bits": "auto", "sensitivity": "delicate", "budget": {"average_bits": 4}})
    assert [found.message for found in find("quantize.rtn").check(own, inputs(folder))] == [
        "`bits: auto` assigns bits, and `delicate` measured sparsities"
    ]


def test_a_plan_knows_the_sparsities_once_they_were_measured(folder: Path, measured: Path) -> None:
    given = inputs(folder, measured)
    kind = find("prune.wanda")
    assert kind.check(params(), given) == []
    assert kind.outcome(params(), given).tensors == given.checkpoint.tensors
    found = kind.check(params(budget={"max_loss": 1e-9}), given)
    assert [each.code for each in found] == ["R812"]
    assert found[0].help is not None
    assert found[0].help.endswith("or measure candidates with less sparsity")


def test_experts_of_a_layer_get_one_sparsity_and_other_sites_their_own() -> None:
    def site(name: str, role: str, *fused_with: str) -> Site:
        return Site(name, f"{name}.weight", None, False, 2, 2, 0, role, fused_with)

    experts = [site(f"layers.0.mlp.experts.{expert}.down_proj", "expert_down") for expert in (0, 1)]
    sites = [*experts, site("q", "q", "k"), site("k", "k", "q")]
    assert [len(group) for group in groups(sites, fused=False)] == [2, 1, 1]
    assert [len(group) for group in groups(sites)] == [2, 2]


def test_the_error_is_that_of_wandas_zeros_under_the_second_moment() -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(3, 8), torch.randn(20, 8) * torch.arange(1, 9)
    hessian = 2 * rows.T @ rows / len(rows)
    how = SiteMeasure(
        {"0.5": {"sparsity": 0.5, "pattern": "unstructured"}}, {"sparsities": [0.5], "solver": "rounding"}, {}
    )
    done = measure_site(how, Linear(("x",), weight, torch.float32), Statistics(len(rows), hessian=hessian), {})
    norms = rows.double().square().sum(0).sqrt()
    zeros = torch.zeros(3, 8, dtype=torch.double)
    for row in range(3):
        for column in (weight[row].double().abs() * norms).argsort()[:4]:
            zeros[row, column] = weight[row, column]
    outputs = rows.double() @ weight.double().T
    expected = (rows.double() @ zeros.T).square().sum() / outputs.square().sum()
    assert done.metrics["error/0.5"] == pytest.approx(float(expected), rel=1e-4)
