"""Dropping experts, against transformers' dense model whose routers cannot choose those that were dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from runner.contracts.account import CHANGED, COPIED, DROPPED
from runner.contracts.facts import CheckpointFacts
from runner.contracts.planned_account import check_written
from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted, StepFailed
from runner.methods import expert_choice, expert_merging
from runner.model.architecture import inspect, probe
from runner.model.checkpoint.headers import read_headers
from runner.model.layerwise import expert_usage
from runner.model.layerwise.describe import describe
from runner.plan import tensor_account
from runner.plan.resolve_inputs import described
from runner.recipe.schema.load import defaults
from runner.steps.prune import experts
from tests import model_types
from tests.host import Host
from tests.sweep import IDS, MACHINE

KIND = "prune.experts"
FEW = IDS[:12]
GROUPED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1}


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(probe, "_answer", describe)


def saved(folder: Path, model_type: str, **changes: Any) -> CheckpointFacts:
    """A random tiny mixture in `folder`, described."""
    config = model_types.config(model_type)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, tensor in model.state_dict().items():
        if tensor.ndim >= 2:
            torch.nn.init.normal_(tensor, std=0.15)
        elif "bias" in name:
            torch.nn.init.normal_(tensor, std=0.05)
    model.save_pretrained(folder)
    return described(inspect.facts(folder, "model"), folder)


def apply(facts: CheckpointFacts, folder: Path, **params: Any) -> Any:
    return experts.run(host(facts, folder, **params))


def host(facts: CheckpointFacts, folder: Path, ids: torch.Tensor | None = FEW, **params: Any) -> Host:
    made = Host(folder, KIND, Path(facts.tokenizer or ""), ids, **params)
    sites = tuple(site.name for site in facts.sites)
    made.inputs = {"checkpoint": replace(made.inputs["checkpoint"], sites=sites, linears=facts.linears)}
    return made


def inputs(facts: CheckpointFacts) -> Inputs:
    return Inputs(facts, {}, {"data": DataFacts("calibration", len(FEW), FEW.shape[1], FEW.nbytes, "0" * 64)}, MACHINE)


def refusals(facts: CheckpointFacts, **params: Any) -> list[tuple[str, str, str | None]]:
    given = defaults(KIND, {"data": "calibration"} | params)
    if given["data"] is None:
        del given["data"]
    return [(each.code, each.message, each.help) for each in experts.check(given, inputs(facts))]


def logits(folder: Path, dropped: Mapping[str, Sequence[int]] | None = None) -> torch.Tensor:
    """The logits of plain transformers for FEW, where routers beside the named modules of experts give some −inf."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad(), _without(model, dropped or {}):
        found: torch.Tensor = model(input_ids=FEW).logits
    return found


@contextmanager
def _without(model: Any, dropped: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Let the products of routers, those with as many rows as there are experts, be −inf for some experts."""
    routers: dict[int, list[int]] = {}
    for name, numbers in dropped.items():
        count = len(next(model.get_submodule(name).parameters()))
        around = model.get_submodule(name.rpartition(".")[0])
        for key, tensor in [*around.named_parameters(), *around.named_buffers()]:
            if not key.startswith("experts.") and len(tensor) == count and tensor.ndim == 2:
                routers[tensor.data_ptr()] = list(numbers)
            if key.endswith("e_score_correction_bias"):
                tensor[..., list(numbers)] = -torch.inf

    class Masked(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if function is functional.linear and args[1].data_ptr() in routers:
                out[..., routers[args[1].data_ptr()]] = -torch.inf
            return out

    with Masked():
        yield


def left_out(facts: CheckpointFacts, result: Any) -> dict[str, list[int]]:
    """The experts of each mixture that a step dropped, by its record."""
    counts = {each.name: each.experts for each in facts.linears.mixtures}
    kept = {each["name"]: each["kept"] for each in result.details["mixtures"]}
    assert list(kept) == list(counts)
    return {name: [e for e in range(counts[name]) if e not in kept[name]] for name in kept}


@pytest.mark.parametrize(("model_type", "changes", "keep"), [
    ("mixtral", {}, 3),  # softmax over those chosen; an expert has tensors of its own
    pytest.param("qwen2_moe", {"norm_topk_prob": False}, 3, marks=pytest.mark.nightly),  # softmax over all, shared
    pytest.param("gpt_oss", {}, 3, marks=pytest.mark.nightly),  # all experts in one tensor, with biases, transposed
    pytest.param("granitemoe", {}, 3, marks=pytest.mark.nightly),  # all in one, its router inside another module
    pytest.param("ernie4_5_moe", {}, 3, marks=pytest.mark.nightly),  # corrections [1, experts]
    pytest.param("deepseek_v3", GROUPED, 4, marks=pytest.mark.nightly),  # groups, and biases that correct the choice
])  # fmt: skip
def test_the_result_is_the_model_whose_routers_cannot_choose_them(
    tmp_path: Path, model_type: str, changes: Mapping[str, Any], keep: int
) -> None:
    facts = saved(tmp_path / "model", model_type, **changes)
    assert refusals(facts, keep=keep) == []
    result = apply(facts, tmp_path / "step", keep=keep)
    out = tmp_path / "step" / "out"
    dropped = left_out(facts, result)
    masked = logits(tmp_path / "model", dropped)
    assert torch.isfinite(masked).all()
    assert torch.allclose(logits(out), masked, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(masked, logits(tmp_path / "model"), atol=1e-3)
    params = defaults(KIND, {"data": "calibration", "keep": keep})
    made = experts.outcome(params, inputs(facts))
    again = described(inspect.facts(out, "model"), out)
    assert (made.sites, made.description) == (again.sites, again.description)
    planned, complaints = tensor_account.account(facts, made, experts.changes(params, inputs(facts)))
    assert complaints == []
    written = {name: tuple(header.shape) for name, header in read_headers(out).items()}
    check_written(planned.written, written, planned.unchanged(), result.account)


def test_scores_are_those_of_the_papers(tmp_path: Path) -> None:
    """The mean of routing weight times norm of the output, and the tokens routed, from transformers' own modules."""
    facts = saved(tmp_path / "model", "qwen2_moe", norm_topk_prob=False)
    result = apply(facts, tmp_path / "step", ratio=0.25)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    lost = []
    for described_ in result.details["mixtures"]:
        module = model.get_submodule(described_["name"])
        seen: list[Any] = []
        module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args))
        with torch.no_grad():
            model(input_ids=FEW)
        hidden, chosen, weights = seen[0]
        scores, tokens, energy = [], [], []
        for expert in range(4):
            places = (chosen == expert).nonzero()
            x = hidden[places[:, 0]]
            inner = module._apply_gate(x @ module.gate_up_proj[expert].T)
            sizes = weights[places[:, 0], places[:, 1]] * (inner @ module.down_proj[expert].T).norm(dim=-1)
            scores.append(sizes.mean().item())
            tokens.append(len(places))
            energy.append(sizes.square().sum().item())
        assert described_["scores"] == pytest.approx(scores, rel=1e-4)
        assert described_["tokens"] == tokens
        least = scores.index(min(scores))
        assert described_["kept"] == [e for e in range(4) if e != least]
        assert described_["tokens_lost"] == pytest.approx(tokens[least] / sum(tokens))
        assert described_["energy_lost"] == pytest.approx(energy[least] / sum(energy), rel=1e-4)
        lost.append(energy[least] / sum(energy))
    assert result.metrics["energy_lost"] == pytest.approx(sum(lost) / len(lost), rel=1e-4)
    assert result.metrics["energy_lost_max"] == pytest.approx(max(lost), rel=1e-4)
    assert (result.metrics["experts"], result.metrics["experts_dropped"]) == (3, len(lost))


def test_other_criteria(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    before = load_file(tmp_path / "model" / "model.safetensors")
    most = apply(facts, tmp_path / "frequency", criterion="frequency", keep=2).details["mixtures"]
    assert all(each["scores"] == each["tokens"] for each in most)
    lost = [
        apply(facts, tmp_path / f"by-{by}", criterion=by, keep=2).metrics["energy_lost"] for by in ("energy", "norm")
    ]
    assert lost[0] < lost[1]
    norms = apply(facts, tmp_path / "norm", ids=None, criterion="norm", keep=2)
    assert set(norms.metrics) == {"experts", "experts_dropped", "bytes"}
    for mixture, own in zip(facts.linears.mixtures, norms.details["mixtures"], strict=True):
        for expert, score in enumerate(own["scores"]):
            squares = sum(before[f"{name}.weight"].double().square().sum() for name in mixture.sites(expert))
            assert score == pytest.approx(float(squares) ** 0.5)
    one, other = (
        apply(facts, tmp_path / f"{n}", ids=None, criterion="random", keep=2).details["mixtures"] for n in range(2)
    )
    assert one == other
    assert len({tuple(each["kept"]) for each in one}) > 1  # layers draw for themselves


def test_every_dropped_tensor_has_its_reason(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    result = apply(facts, tmp_path / "step", keep=3, max_shard_size="60KB")
    fates = result.account.fates
    dropped = left_out(facts, result)
    for name, fate in fates.items():
        layer = name.split(".")[2] if "layers" in name else ""
        numbers = dropped.get(f"model.layers.{layer}.mlp.experts", [])
        if any(f".experts.{number}." in name for number in numbers):
            why = f"expert {numbers[0]} is not among the 3 of 4 that stay by `reap`"
            assert (fate.fate, fate.names, fate.reason) == (DROPPED, (), why)
        else:
            assert fate.fate == (CHANGED if name.endswith("gate.weight") else COPIED), name
    out = tmp_path / "step" / "out"
    assert len(list(out.glob("*.safetensors"))) > 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(header.nbytes for header in read_headers(out).values())


def test_an_interrupted_step_ends_with_the_same_bytes(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "deepseek_v3")
    once = apply(facts, tmp_path / "once", keep=3)
    stopped = host(facts, tmp_path / "twice", keep=3)
    stopped.stop_after = 2
    with pytest.raises(Interrupted):
        experts.run(stopped)
    twice = apply(facts, tmp_path / "twice", keep=3)
    assert (once.metrics, once.details) == (twice.metrics, twice.details)
    for path in (tmp_path / "once" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / "out" / path.name).read_bytes(), path.name


def twins(folder: Path, model_type: str) -> CheckpointFacts:
    """A mixture whose last two experts compute the same, their neurons in different orders."""
    facts = saved(folder, model_type)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for mixture in facts.linears.mixtures:
        module: Any = model.get_submodule(mixture.name)
        gate_up, down = module.gate_up_proj.data, module.down_proj.data
        order = torch.randperm(down.shape[2], generator=torch.Generator().manual_seed(1))
        gate_up[-1] = gate_up[-2].unflatten(0, (2, -1))[:, order].flatten(0, 1)
        down[-1] = down[-2][:, order]
    model.save_pretrained(folder)
    return described(inspect.facts(folder, "model"), folder)


@pytest.mark.parametrize(("model_type", "keep"), [
    ("mixtral", 3),  # an expert has tensors of its own
    ("granitemoe", 3),  # all in one tensor, gate above up
    pytest.param("qwen3_moe", 3, marks=pytest.mark.nightly),
])  # fmt: skip
def test_an_expert_that_computes_the_same_is_added_without_a_change(
    tmp_path: Path, model_type: str, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = twins(tmp_path / "model", model_type)
    count = facts.linears.mixtures[0].experts
    assert refusals(facts, keep=keep, merge=True) == []
    # What stays is given, so that the twin is what is dropped.
    monkeypatch.setattr(expert_choice, "choose", lambda scores, keep, groups: [*range(keep - 1), count - 2])
    dropped = apply(facts, tmp_path / "dropped", keep=keep)
    merged = apply(facts, tmp_path / "merged", keep=keep, merge=True)
    last = {each["joins"][-1] for each in merged.details["mixtures"]}
    assert last == {count - 2}
    assert "joins" not in dropped.details["mixtures"][0]
    assert (merged.metrics["experts_merged"], dropped.metrics["experts_dropped"]) == (len(facts.linears.mixtures),) * 2
    left_alone, own = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("dropped", "merged"))
    assert left_alone.keys() == own.keys()
    for name, tensor in own.items():
        assert torch.allclose(tensor, left_alone[name], atol=1e-6), name
    assert any(not torch.equal(tensor, left_alone[name]) or tensor.ndim > 2 for name, tensor in own.items())
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "out")


def test_what_a_merged_expert_is(tmp_path: Path) -> None:
    """Which experts join which, by transformers' own outputs; the sums, by the weights that are read here."""
    facts = saved(tmp_path / "model", "mixtral")
    result = apply(facts, tmp_path / "step", keep=2, merge=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "step" / "out" / "model.safetensors")
    moved = 0
    for index, mixture in enumerate(result.details["mixtures"]):
        module = model.get_submodule(mixture["name"])
        seen: list[Any] = []
        module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args))
        with torch.no_grad():
            model(input_ids=FEW)
        x = seen[0][0][torch.arange(min(1024, FEW.numel())) * FEW.numel() // min(1024, FEW.numel())]
        with torch.no_grad():
            out = torch.stack([module._apply_gate(x @ w.T) @ d.T for w, d in
                               zip(module.gate_up_proj, module.down_proj, strict=True)]).flatten(1)  # fmt: skip
        alike = functional.cosine_similarity(out[:, None], out[None], dim=-1)
        kept, joins = mixture["kept"], mixture["joins"]
        for expert in range(4):
            wanted = expert if expert in kept else max(kept, key=lambda each: float(alike[expert, each]))
            assert joins[expert] == wanted
        cosines = [float(alike[expert, joins[expert]]) for expert in range(4)]
        assert mixture["alike"] == pytest.approx(cosines, abs=1e-5)
        weighed = [
            score * tokens * max(cosine, 0) ** 2
            for score, tokens, cosine in zip(mixture["scores"], mixture["tokens"], cosines, strict=True)
        ]
        for place, expert in enumerate(kept):
            members = [expert, *(e for e in range(4) if joins[e] == expert and e != expert)]
            moved += len(members) > 1
            sums = dict.fromkeys(("w1", "w3", "w2"), torch.zeros(()))
            anchor = _neurons(before, index, expert)
            for member in members:
                order = expert_merging.order(anchor, _neurons(before, index, member))
                share = weighed[member] / sum(weighed[each] for each in members)
                for name, rows in zip(("w1", "w3", "w2"), _neurons(before, index, member), strict=True):
                    sums[name] = sums[name] + share * rows[order]
            for name, value in sums.items():
                stored = after[f"model.layers.{index}.block_sparse_moe.experts.{place}.{name}.weight"]
                assert torch.allclose(stored, value.T if name == "w2" else value, atol=1e-5), name
    assert moved
    fates = result.account.fates
    reasons = {fate.reason for fate in fates.values() if fate.fate == DROPPED}
    assert any(reason.startswith("expert ") and " is merged into expert " in reason for reason in reasons)
    assert "model.layers.0.self_attn.q_proj.weight" in fates
    assert fates["model.layers.0.self_attn.q_proj.weight"].fate == COPIED


def _neurons(tensors: Mapping[str, torch.Tensor], layer: int, expert: int) -> list[torch.Tensor]:
    w1, w3, w2 = (
        tensors[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"] for name in ("w1", "w3", "w2")
    )
    return [w1, w3, w2.T]


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    assert refusals(facts, data=None, keep=2, criterion="norm", merge=True) == [
        ("R846", "`merge: true` compares the outputs of experts on calibration text, and the step names none",
         "name an entry of `data`, or leave `merge` out")
    ]  # fmt: skip
    other = "leave `merge` out: they are dropped then"
    why = "`model.layers.0.mlp.experts` holds gate and up in one matrix, whose neurons have no order that is known"
    assert refusals(saved(tmp_path / "biased", "gpt_oss"), keep=3, merge=True) == [
        ("R847", f"experts of `model` (`gpt_oss`) cannot be merged: {why}", other)
    ]
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    packed = {**facts.tensors, name: replace(facts.tensors[name], dtype="F8_E4M3")}
    why = f"`{name}` is no matrix of floating-point numbers"
    complaints = refusals(replace(facts, tensors=packed), keep=2, merge=True)
    assert complaints[0] == ("R847", f"experts of `model` (`mixtral`) cannot be merged: {why}", other)


def test_what_is_refused(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    assert refusals(facts, keep=1) == [
        ("R842", "`keep: 1` leaves 1 of 4 experts, and every token is routed to 2", "keep 2 or more")
    ]
    assert refusals(facts, ratio=0.75) == [
        ("R842", "`ratio: 0.75` leaves 1 of 4 experts, and every token is routed to 2", "keep 2 or more")
    ]
    assert refusals(facts, keep=4) == [("R842", "`keep: 4` drops none of 4 experts", "keep 2 to 3")]
    assert refusals(facts, ratio=0.1) == [("R842", "`ratio: 0.1` drops none of 4 experts", "keep 2 to 3")]
    assert refusals(facts) == [
        ("R842", "of `keep` and `ratio` neither says how many of 4 experts stay", "write one of them")
    ]
    assert refusals(facts, keep=2, ratio=0.5) == [
        ("R842", "of `keep` and `ratio` both say how many of 4 experts stay", "write one of them")
    ]
    assert refusals(facts, data=None, keep=2) == [
        ("R846", "`criterion: reap` is measured on calibration text, and the step names none",
         "name an entry of `data`, or use `criterion: norm`")
    ]  # fmt: skip
    assert refusals(facts, data=None, keep=2, criterion="norm") == []
    dense = saved(tmp_path / "dense", "llama")
    assert refusals(dense, keep=2) == [
        ("R841", "`model` (`llama`) has no experts to drop: it is no mixture of experts",
         "use `prune.width` or `prune.depth`, or another model")
    ]  # fmt: skip


def test_groups_of_experts(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "deepseek_v3", **GROUPED)
    message = "leaves {} experts, and routers choose 1 of 2 equal groups first"
    remedy = "keep a multiple of 2 that is at least 4: 2 in every group"
    assert refusals(facts, keep=5) == [("R843", f"`keep: 5` {message.format(5)}", remedy)]
    assert refusals(facts, ratio=0.75) == [("R843", f"`ratio: 0.75` {message.format(2)}", remedy)]
    kept = apply(facts, tmp_path / "step", keep=6).details["mixtures"]
    assert all(sum(expert < 4 for expert in each["kept"]) == 3 for each in kept)


def test_what_the_configuration_cannot_say(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    text = {key: value for key, value in facts.config.raw.items() if key != "num_local_experts"}
    unsaid = replace(facts, config=replace(facts.config, raw=text, text=text))
    other = "choose another model, or prune weights within its experts"
    assert refusals(unsaid, keep=2) == [
        ("R844", "config.json of `model` (`mixtral`) has no key that says that there are 4 experts", other)
    ]
    first, *rest = facts.linears.mixtures
    assert facts.description is not None
    uneven = replace(facts.linears, mixtures=(replace(first, experts=8), *rest))
    assert refusals(replace(facts, description=replace(facts.description, linears=uneven)), keep=2) == [
        ("R844", "the mixtures of `model` (`mixtral`) have 4 and 8 experts, and one number is to be written", other)
    ]
    name = "model.layers.0.block_sparse_moe.gate.weight"
    numbers = {**facts.tensors, name: replace(facts.tensors[name], dtype="I64")}
    assert refusals(replace(facts, tensors=numbers), keep=2) == [
        ("R845", f"`{name}` holds whole numbers, which may be those of experts that are to be dropped", other)
    ]
    unread = replace(facts.description, ignored=("model.layers.4.mlp.experts.0.up_proj.weight",))
    assert refusals(replace(facts, description=unread), keep=2) == [
        ("R845", f"`model` (`mixtral`) holds `{unread.ignored[0]}`, experts that transformers does not read", other)
    ]
    grown = {**facts.tensors, name: replace(facts.tensors[name], shape=(4, 32, 1))}
    message = "transformers would not load `model` (`mixtral`) with 2 experts"
    assert refusals(replace(facts, tensors=grown), keep=2) == [
        ("R844", f"{message}: `{name}` is [2, 32, 1] in the result, the model wants [2, 32]", other)
    ]


@pytest.mark.parametrize("criterion", ["norm", "reap"])
def test_the_expert_whose_outputs_are_not_finite_is_named(tmp_path: Path, criterion: str) -> None:
    """Expert 2 stays, and all others are compared with it."""
    facts = saved(tmp_path / "model", "granitemoe")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    name = facts.linears.mixtures[0].name
    with torch.no_grad():
        model.get_parameter(f"{name}.down_proj")[2] = 3e38
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(StepFailed, match=rf"^expert 2 of `{name}` gives outputs that are not finite$"):
        apply(facts, tmp_path / "step", keep=2, merge=True, criterion=criterion)


def test_weights_whose_norm_is_not_finite_are_told_as_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    monkeypatch.setattr(expert_usage, "_norm", lambda weights: float("inf"))
    name = facts.linears.mixtures[0].name
    with pytest.raises(StepFailed, match=rf"^expert 0 of `{name}` has weights that are not finite$"):
        apply(facts, tmp_path / "step", ids=None, keep=2, criterion="norm")


def test_merging_takes_time_for_outputs_and_for_pairs_of_neurons(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")  # 4 layers of 4 experts, 3 matrices of 64 × 32 in each
    without, merging = (
        experts.estimate(defaults(KIND, {"data": "calibration", "keep": 2, "merge": merge}), inputs(facts))
        for merge in (False, True)
    )
    outputs, pairs = 2 * FEW.numel() * 4 * 3 * 64 * 32, 2 * 2 * 64 * 3 * 64 * 32
    expected = 4 * (outputs + pairs) / MACHINE.flops + 4 * 2 * 64**3 * 1e-10
    assert merging.seconds - without.seconds == pytest.approx(expected, rel=1e-6)
    assert merging.memory > without.memory
    assert (merging.disk, merging.scratch) == (without.disk, without.scratch)


@pytest.mark.parametrize("layers", [1, pytest.param(3, marks=pytest.mark.nightly)])
def test_an_interrupted_merge_ends_with_the_same_bytes(tmp_path: Path, layers: int) -> None:
    facts = saved(tmp_path / "model", "granitemoe")
    once = apply(facts, tmp_path / "once", keep=2, merge=True)
    stopped = host(facts, tmp_path / "twice", keep=2, merge=True)
    stopped.stop_after = layers
    with pytest.raises(Interrupted):
        experts.run(stopped)
    twice = apply(facts, tmp_path / "twice", keep=2, merge=True)
    assert (once.metrics, once.details) == (twice.metrics, twice.details)
    for path in (tmp_path / "once" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / "out" / path.name).read_bytes(), path.name


def test_an_expert_that_weighs_nothing_is_dropped(tmp_path: Path) -> None:
    """Of random experts about half have outputs turned away from all that stay: a negative cosine."""
    facts = saved(tmp_path / "model", "mixtral")
    result = apply(facts, tmp_path / "step", keep=2, merge=True)
    merged = 0
    for mixture in result.details["mixtures"]:
        for expert in set(range(4)) - set(mixture["kept"]):
            weighs = mixture["alike"][expert] > 0 and mixture["tokens"][expert] > 0
            name = f"model.layers.{mixture['layer']}.block_sparse_moe.experts.{expert}.w1.weight"
            into = f"is merged into expert {mixture['joins'][expert]}"
            why = into if weighs else "is not among the 2 of 4 that stay by `reap`"
            assert result.account.fates[name].reason == f"expert {expert} {why}"
            merged += weighs
    assert 0 < merged < 8
    assert (result.metrics["experts_merged"], result.metrics["experts_dropped"]) == (merged, 8 - merged)
