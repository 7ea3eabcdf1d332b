"""Sensitivity: errors under H and divergences against naive float64 and transformers' own forward."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from runner.contracts import sensitivity
from runner.contracts.context import DataFacts
from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_description import ModelDescription
from runner.contracts.sensitivity import Sensitivity
from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted
from runner.model.architecture import inspect, probe
from runner.model.layerwise.describe import describe
from runner.model.layerwise.linear import is_conv1d
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps.kinds import find
from tests.host import Host
from tests.steps.test_experts import EXPERTS, host, saved
from tests.sweep import IDS
from tests.tiny import save, tokens

KIND = "analyze.sensitivity"
FLOOR = 860  # tokens: some experts of the mixture see fewer
SETTINGS: dict[str, Any] = {"group_size": 16, "candidates": [2, 4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), "llama")


def measured(out: Path, folder: Path, **params: Any) -> Sensitivity:
    host = Host(out, KIND, folder, tokens(), **{**SETTINGS, **params})
    result = find(KIND).run(host)
    found = sensitivity.read(host.out_dir)
    assert result.details["sensitivity"] == found.to_json()
    for name in found.candidates:
        assert result.metrics[f"loss/{name}"] == pytest.approx(sum(group.losses[name] for group in found.groups))
    return found


@pytest.fixture(scope="module")
def by_errors(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    return measured(tmp_path_factory.mktemp("errors"), folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def rounded(weight: torch.Tensor, importance: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a weight float64 [out, in] rounded in symmetric groups of 16, on the scale of least weighted error.

    The search is finer than the one it is compared with, so that its error may only be a little smaller.
    """
    groups, costs = weight.unflatten(1, (-1, 16)), importance.unflatten(0, (-1, 16))
    middle = 2 ** (bits - 1)
    full = groups.abs().amax(-1, keepdim=True) * 2 / (2**bits - 1)
    best, least = torch.zeros_like(groups), torch.full_like(full, torch.inf)
    for part in torch.linspace(0.3, 1.05, 400, dtype=torch.float64):
        there = (groups / (full * part)).round().clamp(-middle, middle - 1) * full * part
        error = (costs * (there - groups) ** 2).sum(-1, keepdim=True)
        best, least = torch.where(error < least, there, best), torch.minimum(error, least)
    return best.flatten(1)


def seen(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the inputs [tokens, in] of every linear module."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, x, __, name=name: found.update({name: x[0].flatten(0, 1)}))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


def test_output_errors_are_those_of_a_naive_float64_computation(model: Any, by_errors: Sensitivity) -> None:
    inputs = seen(model, tokens())
    assert by_errors.measure == "output_error"
    assert by_errors.data == {"windows": 6, "sequence_length": 24}
    assert [len(group.sites) for group in by_errors.groups] == [1, 2, 3, 1] * 3
    for group in by_errors.groups:
        for name, site in group.sites.items():
            x, weight = inputs[name], model.get_submodule(name).weight.detach()
            for bits in (2, 4):
                change = rounded(weight, x.square().mean(0), bits) - weight
                naive = float((x @ change.T).square().sum() / (x @ weight.T).square().sum())
                assert site.errors[str(bits)] == pytest.approx(naive, rel=0.12), name
            squares = x.T @ x
            assert site.inputs is not None
            assert site.tokens == len(x)
            assert site.inputs.effective_columns == pytest.approx(
                float(squares.trace() ** 2 / squares.square().sum()), rel=1e-4
            )
            norms = x.norm(dim=0)
            assert site.inputs.outliers == pytest.approx(float(norms.max() / norms.median()), rel=1e-4)
        assert group.losses == pytest.approx({b: sum(s.errors[b] for s in group.sites.values()) for b in ("2", "4")})


def test_the_error_of_a_given_change_is_exact() -> None:
    from runner.methods.site_errors import forecast_divergence, relative_error

    draw = torch.Generator().manual_seed(3)
    x, weight, change = (torch.randn(shape, generator=draw) for shape in ((200, 24), (12, 24), (12, 24)))
    squares = torch.rand(12, generator=draw)
    hessian = 2 / 200 * x.T @ x
    out = x.double() @ change.T.double()
    assert relative_error(change, weight, hessian) == pytest.approx(
        float(out.square().sum() / (x.double() @ weight.T.double()).square().sum()), rel=1e-5
    )
    assert forecast_divergence(change, hessian, squares) == pytest.approx(
        float((squares * out.square().mean(0)).sum() / 2), rel=1e-5
    )
    assert relative_error(change, weight, None) == pytest.approx(float(change.norm() ** 2 / weight.norm() ** 2))
    assert relative_error(change, torch.zeros(12, 24), hessian) == 0.0


def test_divergences_are_those_of_transformers_own_forward(folder: Path, model: Any, tmp_path: Path) -> None:
    found = measured(tmp_path / "kl", folder, measure="kl", candidates=[2])
    kept = tmp_path / "kl" / "scratch" / "rounded"
    ids = tokens()
    with torch.no_grad():
        before = model(ids).logits[:, :-1].log_softmax(-1)
    for group in found.groups[1::4]:
        changed = copy.deepcopy(model)
        for name in group.sites:
            with torch.no_grad():
                changed.get_submodule(name).weight.copy_(load_file(kept / f"{name}.safetensors")["2"])
        with torch.no_grad():
            after = changed(ids).logits[:, :-1].log_softmax(-1)
        naive = float((before.exp() * (before - after)).sum(-1).mean())
        assert group.losses["2"] == pytest.approx(naive, rel=1e-4)


def test_gradients_are_those_of_transformers_own_backward(folder: Path, model: Any, tmp_path: Path) -> None:
    found = measured(tmp_path / "gradient", folder, measure="gradient")
    ids = tokens()
    outputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(name: str, inputs: torch.Tensor, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs[name] = inputs.detach().flatten(0, 1), output

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: hook(name, x[0], y))
        for group in found.groups
        for name in group.sites
    ]
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    drawn = torch.multinomial(logits.detach().float().softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    for each in hooks:
        each.remove()
    for group in found.groups:
        forecast = 0.0
        for name in group.sites:
            x, y = outputs[name]
            weight = model.get_submodule(name).weight.detach()
            change = rounded(weight, x.square().mean(0), 2) - weight
            assert y.grad is not None
            gamma = y.grad.flatten(0, 1).square().sum(0) / (6 * 23)
            forecast += float((gamma * (x @ change.T).square().mean(0)).sum() / 2)
        assert group.losses["2"] == pytest.approx(forecast, rel=0.12)


@pytest.mark.parametrize("measure", ["output_error", "kl"])
def test_an_interrupted_measurement_goes_on_and_ends_with_the_same_file(
    measure: str, folder: Path, tmp_path: Path
) -> None:
    params = {**SETTINGS, "candidates": [2], "measure": measure}
    at_once = Host(tmp_path / "at-once", KIND, folder, tokens(), **params)
    find(KIND).run(at_once)
    for stop in (1, 4) if measure == "kl" else (1,):
        with pytest.raises(Interrupted):
            find(KIND).run(Host(tmp_path / "resumed", KIND, folder, tokens(), stop_after=stop, **params))
    last = Host(tmp_path / "resumed", KIND, folder, tokens(), **params)
    find(KIND).run(last)
    assert len(last.layers()) == (1 if measure == "kl" else 2)
    assert (last.out_dir / sensitivity.FILE).read_bytes() == (at_once.out_dir / sensitivity.FILE).read_bytes()


def test_gptq_leaves_less_than_rounding(folder: Path, by_errors: Sensitivity, tmp_path: Path) -> None:
    solved = measured(tmp_path, folder, solver="gptq")
    assert all(a.losses["2"] < b.losses["2"] for a, b in zip(solved.groups, by_errors.groups, strict=True))


def described(facts: CheckpointFacts, **changes: Any) -> list[str]:
    """Return the complaints about measuring the checkpoint."""
    params = defaults(KIND, {"data": "calibration", "group_size": 16, **changes})
    data = {"data": DataFacts("calibration", 6, 24, 0, "")}
    found = find(KIND).check(params, Inputs(facts, {}, data, machine_facts("cpu")))
    return [f"{d.severity}[{d.code}] {'.'.join(map(str, d.path))}: {d.message}; {d.help}" for d in found]


def test_whole_messages(folder: Path) -> None:
    facts = inspect.facts(folder, "model")
    assert described(facts) == described(facts, measure="kl") == []
    assert described(facts, ignore=["*"]) == ["error[R410] ignore: `ignore` leaves no linear module to measure; None"]
    assert described(facts, ignore=["w_proj"]) == [
        (
            "error[R412] ignore.w_proj: `ignore` names `w_proj`, which matches no linear module of this model; its "
            "linear modules are `down_proj`, `gate_proj`, `k_proj`, `o_proj`, `q_proj`, `up_proj`, `v_proj`"
        )
    ]
    [uneven, narrower] = described(facts, group_size=48)
    assert uneven.startswith("error[R411] group_size: ")
    assert narrower.startswith("error[R411] group_size: ")
    handing = replace(facts, description=ModelDescription(hands_state=True))
    assert described(handing) == []
    assert described(handing, measure="gradient") == [
        (
            "error[R816] measure: the layers of `model` hand one another keys and values: none can be run by itself; "
            "use `measure: output_error`"
        )
    ]
    sites = tuple(replace(site, role="expert_down") if site.role == "down" else site for site in facts.sites)
    assert described(replace(facts, sites=sites), measure="kl") == [
        (
            "error[R816] measure: `measure: kl` runs the model as a whole, and experts are read one at a time; "
            'use `measure: output_error`, or leave them out: `ignore: [lm_head, "*.experts.*"]`'
        )
    ]


def test_the_forecast_of_memory_says_what_holds_the_model(folder: Path) -> None:
    facts, machine = inspect.facts(folder, "model"), machine_facts("cpu")
    data = {"data": DataFacts("calibration", 64, 512, 0, "")}
    large = replace(facts, tensors={n: replace(t, shape=(*t.shape, 1 << 16)) for n, t in facts.tensors.items()})
    given = Inputs(large, {}, data, machine)
    need = {
        measure: find(KIND).estimate(defaults(KIND, {"data": "c", "measure": measure}), given)
        for measure in ("output_error", "gradient", "kl")
    }
    held = 4 * large.parameters
    assert need["output_error"].memory < held < min(need["gradient"].memory, need["kl"].memory)
    assert all(cost.disk == 0 for cost in need.values())


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt", "phi3", "qwen3", "gpt_neox", "llama_tied"])
def test_divergences_on_other_architectures(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name)
    group = measured(tmp_path / "kl", folder, measure="kl", candidates=[3]).groups[-1]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        before = model(tokens()).logits[:, :-1].log_softmax(-1)
        for name in group.sites:
            weight = load_file(tmp_path / "kl" / "scratch" / "rounded" / f"{name}.safetensors")["3"]
            base = name if name in dict(model.named_modules()) else f"{model.base_model_prefix}.{name}"
            module = model.get_submodule(base)
            module.get_parameter("weight").copy_(weight.T if is_conv1d(module) else weight)
        after = model(tokens()).logits[:, :-1].log_softmax(-1)
    naive = float((before.exp() * (before - after)).sum(-1).mean())
    assert group.losses["3"] == pytest.approx(naive, rel=1e-4)


def test_the_experts_of_a_layer_are_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_answer", describe)
    facts = saved(tmp_path / "model", "mixtral")
    step = host(facts, tmp_path / "step", KIND, IDS, group_size=16, candidates=[2, 4], expert_min_tokens=FLOOR)
    find(KIND).run(step)
    found = sensitivity.read(step.out_dir)
    mixture = next(group for group in found.groups if any(".experts." in name for name in group.sites))
    assert len(mixture.sites) == 3 * EXPERTS
    assert {site.tokens < FLOOR for site in mixture.sites.values()} == {True, False}
    assert all((site.inputs is None) == (site.tokens < FLOOR) for site in mixture.sites.values())
    routed = {site.name: site for site in facts.sites if site.layer == mixture.layer and site.is_expert}
    assert set(routed) == set(mixture.sites)
    assert 0 < mixture.losses["4"] < mixture.losses["2"] < 3
