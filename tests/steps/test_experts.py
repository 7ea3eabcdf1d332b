"""Mixtures of experts through the steps, against transformers' own experts and against each expert alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted, RecipeError, StepFailed
from runner.model.architecture import inspect, probe
from runner.model.checkpoint.formats import float_quantized, pack_quantized
from runner.model.checkpoint.quantization.presets import PRESETS, resolve
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import engine
from runner.model.layerwise.describe import describe
from runner.model.layerwise.method import Linear, Method, Statistics, Transformed
from runner.model.layerwise.stream_run import StreamInputs, StreamRun
from runner.plan.resolve_inputs import described
from runner.recipe.schema.load import defaults
from runner.steps import architectures, kinds, layer_stream
from runner.steps.quantize import gptq, rtn
from tests import model_types
from tests.host import Host
from tests.sweep import IDS, MACHINE, perplexity
from tests.training.recovering import perplexity as measured
from tests.training.recovering import plain, with_adapter

EXPERTS = 4
GPTQ: Mapping[str, Any] = {"bits": 4, "group_size": 8, "expert_min_tokens": 0}


@pytest.fixture(autouse=True)
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_answer", describe)


def saved(folder: Path, model_type: str) -> CheckpointFacts:
    """A random tiny mixture in `folder`, described."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_types.config(model_type)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return described(inspect.facts(folder, "model"), folder)


def host(facts: CheckpointFacts, folder: Path, kind: str, ids: torch.Tensor | None, **params: Any) -> Host:
    """A step on the model, ready to run."""
    made = Host(folder, kind, Path(facts.tokenizer or ""), ids, **params)
    sites = tuple(site.name for site in facts.sites)
    made.inputs = {"checkpoint": replace(made.inputs["checkpoint"], sites=sites, linears=facts.linears)}
    return made


def apply(facts: CheckpointFacts, folder: Path, kind: str, ids: torch.Tensor | None, **params: Any) -> Any:
    return kinds.find(kind).run(host(facts, folder, kind, ids, **params))


def refusals(facts: CheckpointFacts, kind: str, **params: Any) -> list[tuple[str, str, str | None]]:
    data = {"data": DataFacts("calibration", len(IDS), IDS.shape[1], IDS.nbytes, "0" * 64)}
    found = kinds.find(kind).check(defaults(kind, {"data": "calibration"} | params), Inputs(facts, {}, data, MACHINE))
    return [(each.code, each.message, each.help) for each in found]


def called_with(facts: CheckpointFacts) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """What transformers calls the experts of layer 0 with for IDS[:24]: inputs, the routing, and the experts."""
    model = AutoModelForCausalLM.from_pretrained(Path(facts.tokenizer or ""), dtype=torch.float32).eval()
    experts = model.get_submodule(facts.linears.mixtures[0].name)
    seen: list[tuple[torch.Tensor, ...]] = []
    experts.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        model(input_ids=IDS[:24])
    return seen[0][0], seen[0][1], experts


@pytest.mark.parametrize("tokens", ["routed", "all"])
def test_experts_are_those_that_each_gives_alone(tmp_path: Path, tokens: str) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    params = {**GPTQ, "grid": "minmax", "experts": tokens, "ignore": ["*.self_attn.*"]}
    apply(facts, tmp_path / "step", "quantize.gptq", IDS[:24], **params)
    written = load_file(tmp_path / "step" / "out" / "model.safetensors")
    hidden, routing, experts = called_with(facts)
    options = defaults("quantize.gptq", {"data": "calibration", **params})

    def alone(names: tuple[str, ...], weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        hessian = 2 / len(x) * (x.double().T @ x.double())
        statistics = Statistics(len(x), hessian=hessian.float())
        quantized = gptq.transform(Linear(names, weight, torch.float32), statistics, options).quantized
        assert quantized is not None
        rows = weight.shape[0] // len(names)
        for number, name in enumerate(names):
            part = replace(
                quantized, codes=quantized.codes[number * rows :][:rows], scale=quantized.scale[number * rows :][:rows]
            )
            for stored, tensor in pack_quantized.pack(name, part, {}).items():
                assert torch.equal(written[stored], tensor), stored
        return quantized.dequantize(torch.float32)

    for expert in range(EXPERTS):
        x = hidden if tokens == "all" else hidden[(routing == expert).any(-1)]
        w1, w3, w2 = facts.linears.mixtures[0].sites(expert)
        inner = experts._apply_gate(x @ alone((w1, w3), experts.gate_up_proj[expert].detach(), x).T)
        alone((w2,), experts.down_proj[expert].detach(), inner)


@pytest.mark.parametrize(("model_type", "kind", "params"), [
    ("qwen3_moe", "quantize.rtn", {"bits": 4, "group_size": 8}),
    pytest.param("qwen2_moe", "quantize.gptq", {"bits": 3, "group_size": 8}, marks=pytest.mark.nightly),
    ("gpt_oss", "prune.wanda", {}),
    pytest.param("granitemoe", "prune.sparsegpt", {"expert_min_tokens": 0}, marks=pytest.mark.nightly),
    ("granitemoe", "prune.magnitude", {}),
])  # fmt: skip
def test_transformers_reads_what_is_measured(
    tmp_path: Path, model_type: str, kind: str, params: Mapping[str, Any]
) -> None:
    facts = saved(tmp_path / "model", model_type)
    needs = "data" in defaults(kind, {"data": "calibration"}) and kind not in ("quantize.rtn", "prune.magnitude")
    apply(facts, tmp_path / "step", kind, IDS[:24] if needs else None, **params)
    out = tmp_path / "step" / "out"
    made = described(inspect.facts(out, "made"), out)
    assert {site.name for site in made.sites} == {site.name for site in facts.sites}
    streamed = apply(made, tmp_path / "measured", "evaluate.perplexity", IDS).metrics["perplexity"]
    assert streamed == pytest.approx(perplexity(out), rel=1e-5)
    assert streamed != pytest.approx(perplexity(tmp_path / "model"), rel=1e-9)


def test_half_of_each_row_of_fused_experts_is_zero(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "gpt_oss")
    apply(facts, tmp_path / "step", "prune.wanda", IDS[:24], expert_min_tokens=0)
    written = load_file(tmp_path / "step" / "out" / "model.safetensors")
    for name in ("gate_up_proj", "down_proj"):
        tensor = written[f"model.layers.0.mlp.experts.{name}"].mT  # [experts, rows, columns]
        assert ((tensor == 0).sum(-1) == tensor.shape[-1] // 2).all()


def test_experts_that_few_tokens_reach_are_rounded(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    ids = IDS[:2]
    own = host(facts, tmp_path / "step", "quantize.gptq", ids, bits=4, group_size=8, expert_min_tokens=10**6)
    result = kinds.find("quantize.gptq").run(own)
    apply(facts, tmp_path / "rounded", "quantize.rtn", None, bits=4, group_size=8, grid="mse")
    one, other = (load_file(tmp_path / each / "out" / "model.safetensors") for each in ("step", "rounded"))
    assert all(torch.equal(one[name], other[name]) for name in one if ".experts." in name)
    modules = result.details["layers"][0]["modules"]
    routed = [modules[facts.linears.mixtures[0].sites(expert)[0]]["tokens"] for expert in range(EXPERTS)]
    assert sum(routed) == 2 * ids.numel()  # each token goes to two experts
    assert result.metrics["experts"] == result.metrics["experts_below_floor"] == 4 * EXPERTS
    assert result.metrics["expert_tokens_min"] <= min(routed)
    first = "model.layers.0.block_sparse_moe.experts.0"
    text = f"layer 1: 4 experts, such as `{first}`, saw too few tokens and are changed without statistics"
    assert {"event": "message", "level": "warning", "text": text} in own.events
    assert "| experts_below_floor | 16 |" in (own.out_dir / "README.md").read_text()


def test_an_expert_that_the_writer_forgets_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    forgotten = facts.linears.mixtures[1].sites(2)[0]
    pack = pack_quantized.pack

    def all_but_one(module: str, *args: Any) -> dict[str, torch.Tensor]:
        return {} if module == forgotten else pack(module, *args)

    monkeypatch.setattr(pack_quantized, "pack", all_but_one)
    with pytest.raises(StepFailed) as error:
        apply(facts, tmp_path / "step", "quantize.rtn", None, bits=4, group_size=8)
    assert str(error.value).splitlines()[0] == (
        f"nothing was written for `{forgotten}.weight_packed` and 2 more: the experts of a layer are not complete"
    )


def test_a_step_that_was_interrupted_ends_with_the_same_bytes(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "deepseek_v3")
    apply(facts, tmp_path / "once", "quantize.gptq", IDS[:24], **GPTQ)
    stopped = host(facts, tmp_path / "twice", "quantize.gptq", IDS[:24], **GPTQ)
    stopped.stop_after = 2
    with pytest.raises(Interrupted):
        kinds.find("quantize.gptq").run(stopped)
    apply(facts, tmp_path / "twice", "quantize.gptq", IDS[:24], **GPTQ)
    for path in (tmp_path / "once" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / "out" / path.name).read_bytes(), path.name


def test_running_again_gives_the_bytes_of_suspended_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = saved(tmp_path / "model", "qwen2_moe")
    apply(facts, tmp_path / "suspended", "quantize.gptq", IDS[:24], **GPTQ)
    monkeypatch.setattr("runner.model.layerwise.calibrated.suspend_limit", lambda memory: 0)
    apply(facts, tmp_path / "again", "quantize.gptq", IDS[:24], **GPTQ)
    one, other = (tmp_path / each / "out" / "model.safetensors" for each in ("suspended", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_experts_multiply_in_few_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries keep what they have compiled for every shape: with 64 experts of 15 layers, gigabytes."""
    facts = saved(tmp_path / "model", "mixtral")
    rows: list[int] = []

    def linear(x: torch.Tensor, *args: Any) -> torch.Tensor:
        rows.append(len(x))
        return torch.nn.functional.linear(x, *args)

    monkeypatch.setattr("runner.model.layerwise.expert_stream.functional", SimpleNamespace(linear=linear))
    apply(facts, tmp_path / "step", "prune.wanda", IDS[:24], expert_min_tokens=0)
    assert rows
    assert all(count % 64 == 0 for count in rows)


def test_routers_and_gates_stay(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "qwen2_moe")
    assert not [site.name for site in facts.sites if site.name.endswith((".gate", "shared_expert_gate"))]
    apply(facts, tmp_path / "step", "quantize.rtn", None, bits=4, group_size=8)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("model", "step/out"))
    kept = [name for name in before if name.endswith((".gate.weight", "shared_expert_gate.weight"))]
    assert len(kept) == 8
    assert all(torch.equal(before[name], after[name]) for name in kept)
    written = json.loads((tmp_path / "step" / "out" / "config.json").read_text())["quantization_config"]
    assert {name.removesuffix(".weight") for name in kept} <= set(written["ignore"])
    assert written["dequantize"] is True


def test_two_flows_see_the_same_tokens(tmp_path: Path) -> None:
    """Of a checkpoint that nothing changed, both flows of GPTAQ are equal: the cross moment of an expert is zero."""
    facts = saved(tmp_path / "model", "mixtral")
    seen = []

    def look(linear: Linear, statistics: Statistics, params: Mapping[str, Any]) -> Transformed:
        seen.append((linear.names, statistics.of("cross").abs().max().item()))
        return Transformed(weight=linear.weight)

    own = host(facts, tmp_path / "step", "quantize.gptq", IDS[:4], **GPTQ)
    checkpoint = own.inputs["checkpoint"]
    known = inspect.of_artifact(checkpoint)
    options = {site.name: own.params for site in known.sites}
    run = StreamRun(own.scratch_dir, own.out_dir / "progress.json", layer_stream.hooks(own))
    engine.transform(
        StreamInputs(checkpoint.path, known, ids=IDS[:4]), Method(look, options, "cross", stacked=True),
        lambda index, changed: {"layer": index, "modules": {}}, run, lambda index, changed: None,
    )  # fmt: skip
    experts = [names for names, _ in seen if "experts" in names[0]]
    assert len(experts) == 2 * 4 * EXPERTS
    assert max(cross for _, cross in seen) < 1e-4


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    fused = saved(tmp_path / "gpt_oss", "gpt_oss")
    message = (
        "the experts `model.layers.0.mlp.experts` cannot be stored packed: transformers keeps the experts of this "
        "architecture in one tensor and has no packed form of it"
    )
    remedy = 'leave them as they are: `ignore: [lm_head, "*.experts.*"]`, or prune them'
    assert refusals(fused, "quantize.gptq", group_size=16) == [("R602", message, remedy)]
    assert refusals(fused, "quantize.gptq", group_size=16, ignore=["lm_head", "*.experts.*"]) == []
    each = saved(tmp_path / "mixtral", "mixtral")
    message = "the experts of a mixture are calibrated one matrix after another; `true_sequential: false` is not"
    assert refusals(each, "quantize.gptq", group_size=16, true_sequential=False) == [
        ("R603", message, "leave it out")
    ]  # fmt: skip


@pytest.mark.parametrize("model_type", [pytest.param("kimi_linear", marks=pytest.mark.nightly), "olmo_hybrid"])
def test_nothing_is_packed_beside_tensors_that_are_joined_on_loading(tmp_path: Path, model_type: str) -> None:
    facts = saved(tmp_path / "model", model_type)
    found = refusals(facts, "quantize.gptq", group_size="channel")
    assert [(code, help) for code, _, help in found] == [("R413", "use a kind that keeps weights dense")]
    assert found[0][1].startswith("transformers makes another tensor of `model.layers.0.")
    assert found[0][1].endswith("conv1d.weight` on loading, which it cannot beside packed modules")
    assert refusals(facts, "prune.wanda") == []


@pytest.mark.parametrize(("params", "left"), [
    ({"group_size": 16, "ignore": ["lm_head", "*.experts.*"]}, "0.mlp.experts.0.gate_proj"),
    ({"group_size": 16, "ignore": ["lm_head", "model.layers.1.*"]}, "1.mlp.experts.0.gate_proj"),
    ({"group_size": 16, "ignore": ["lm_head", "*.experts.*.down_proj"]}, "0.mlp.experts.0.down_proj"),
    ({"scheme": "w8a8", "ignore": ["lm_head", "*.experts.*"]}, "0.mlp.experts.0.gate_proj"),
    ({"scheme": "fp8", "ignore": ["lm_head", "*.experts.*"], "overrides": {"*.o_proj": {"scheme": "w8a16"}}},
     "0.mlp.experts.0.gate_proj"),
])  # fmt: skip
def test_dense_experts_are_not_joined_beside_packed_modules(tmp_path: Path, params: dict[str, Any], left: str) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    message = (
        "transformers joins the experts of a layer on loading, and takes all of them for packed: "
        f"`model.layers.{left}` is not"
    )
    remedy = "quantize all experts too, none, or use a scheme of 8-bit floats, such as `scheme: fp8`"
    assert refusals(facts, "quantize.gptq", **params) == [("R413", message, remedy)]


@pytest.mark.parametrize("ignored", ["*.experts.*", pytest.param("*.experts.*.down_proj", marks=pytest.mark.nightly)])
def test_dense_experts_beside_eight_bit_floats(tmp_path: Path, ignored: str) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    apply(facts, tmp_path / "out", "quantize.rtn", None, scheme="fp8", ignore=["lm_head", ignored])
    assert perplexity(tmp_path / "out" / "out") == pytest.approx(perplexity(tmp_path / "model"), rel=0.01)


@pytest.mark.parametrize(("params", "why", "remedy"), [
    ({"group_size": 16, "symmetric": False}, ", and of experts it does not read the zero points",
     "use `symmetric: true`"),
    ({"scheme": "w8a8", "format": "int-quantized"}, ", and experts of `int-quantized` it does not unpack",
     "use `format: pack-quantized`, or `scheme: fp8`"),
    ({"scheme": "nvfp4a16", "format": "nvfp4-pack-quantized"},
     ", and experts of `nvfp4-pack-quantized` it does not unpack", "use `format: pack-quantized`, or `scheme: fp8`"),
    ({"group_size": 16, "format": "gptq"}, ", and those of this format it does not unpack",
     "use `format: pack-quantized`"),
])  # fmt: skip
def test_schemes_that_experts_cannot_have(tmp_path: Path, params: dict[str, Any], why: str, remedy: str) -> None:
    message = f"transformers can only load packed experts of a mixture that it unpacks{why}"
    assert refusals(saved(tmp_path / "model", "mixtral"), "quantize.gptq", **params) == [("R413", message, remedy)]


def test_rounding_is_that_of_each_expert_alone(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    apply(facts, tmp_path / "step", "quantize.rtn", None, bits=4, group_size=8)
    before = load_file(tmp_path / "model" / "model.safetensors")
    options = defaults("quantize.rtn", {"bits": 4, "group_size": 8})
    with CheckpointReader(tmp_path / "step" / "out") as reader:
        for name in facts.linears.mixtures[3].sites(EXPERTS - 1):
            alone = rtn.transform(Linear((name,), before[f"{name}.weight"], torch.float32), Statistics(), options)
            assert alone.quantized is not None
            assert torch.equal(reader.read_quantized(name).codes, alone.quantized.codes)


def complaints(folder: Path, change: Any) -> list[tuple[str, str]]:
    """What the plan says of a mixture whose tensors, or config.json, were changed by `change(tensors, config)`."""
    saved(folder, "mixtral")
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError) as error:
        described(inspect.facts(folder, "m"), folder)
    return [(each.code, each.message) for each in error.value.diagnostics]


MIXED = "model.layers.2.block_sparse_moe"


def test_an_expert_that_is_not_in_the_shard(tmp_path: Path) -> None:
    name = f"{MIXED}.experts.3.w2.weight"
    assert complaints(tmp_path / "one", lambda tensors, config: tensors.pop(name)) == [
        ("R446", f"layer 2 has no `{name}`; the other 3 layers have it")
    ]

    def remove(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        for layer in range(4):
            del tensors[name.replace(".2.", f".{layer}.", 1)]

    assert complaints(tmp_path / "all", remove) == [
        ("R406", f"tensor `{name.replace('.2.', f'.{layer}.', 1)}` is missing from `m`") for layer in range(4)
    ]


def test_a_router_of_another_size(tmp_path: Path) -> None:
    name = f"{MIXED}.gate.weight"

    def grow(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        tensors[name] = torch.zeros(5, 32)

    assert complaints(tmp_path / "model", grow) == [
        ("R446", f"`{name}` has the shape [5, 32]; in 3 of 4 layers it is [4, 32]")
    ]


def test_an_expert_of_another_size(tmp_path: Path) -> None:
    name = f"{MIXED}.experts.1.w2.weight"

    def shrink(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        tensors[name] = torch.zeros(32, 60)

    assert complaints(tmp_path / "model", shrink) == [
        ("R446", f"`{name}` has the shape [32, 60]; in 3 of 4 layers it is [32, 64]")
    ]


def test_fewer_experts_in_the_configuration_than_in_the_shards(tmp_path: Path) -> None:
    found = complaints(tmp_path / "model", lambda tensors, config: config.update(num_local_experts=3))
    name = "model.layers.0.block_sparse_moe"
    assert ("R407", f"`{name}.gate.weight` is [4, 32] in model.safetensors, the model wants [3, 32]") in found
    assert ("R415", f"nothing in the model of `m` has a use for its tensor `{name}.experts.3.w1.weight`") in found


@pytest.mark.parametrize(("kind", "params"), [
    ("recover.eora", {"ignore": ["lm_head", "*.experts.*"], "rank": 2}),
    ("recover.lora", {"target_modules": ["*.self_attn.*"], "rank": 2, "alpha": 4, "steps": 4, "batch_size": 4,
                      "learning_rate": 0.02, "precision": "fp32"}),
])  # fmt: skip
def test_adapters_of_attention_beside_packed_experts(tmp_path: Path, kind: str, params: Mapping[str, Any]) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    apply(facts, tmp_path / "step", "quantize.rtn", None, bits=3, group_size=8)
    out = tmp_path / "step" / "out"
    packed = described(inspect.facts(out, "packed"), out)
    own = Host(
        tmp_path / "adapter", kind, out, IDS[:16],
        others={"against" if kind == "recover.eora" else "teacher": tmp_path / "model"}, **params,
    )  # fmt: skip
    checkpoint, sites = own.inputs["checkpoint"], tuple(site.name for site in packed.sites)
    own.inputs = {**own.inputs, "checkpoint": replace(checkpoint, sites=sites, linears=packed.linears)}
    kinds.find(kind).run(own)
    made = described(inspect.facts(own.out_dir, "made"), own.out_dir)
    streamed = apply(made, tmp_path / "measured", "evaluate.perplexity", IDS).metrics["perplexity"]
    adapted = with_adapter(plain(own.out_dir), own.out_dir)
    assert streamed == pytest.approx(measured(adapted, IDS), rel=1e-4)
    assert streamed != pytest.approx(perplexity(out), rel=1e-6)


def test_experts_get_no_terms_of_eora(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    first = "model.layers.0.mlp.experts.0.down_proj"
    message = f"`{first}` and 47 more of a mixture would get an adapter; `recover.eora` makes none of experts"
    data = {"data": DataFacts("calibration", len(IDS), IDS.shape[1], IDS.nbytes, "0" * 64)}
    params = defaults("recover.eora", {"data": "calibration", "against": "model", "rank": 2})
    found = kinds.find("recover.eora").check(params, Inputs(facts, {"against": facts}, data, MACHINE))
    assert ("R605", message, 'leave them out: `ignore: [lm_head, "*.experts.*"]`') in [
        (each.code, each.message, each.help) for each in found
    ]


def test_packed_experts_are_not_quantized_again(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    message = "a mixture of experts cannot be quantized again with an adapter merged into it"
    data = {"data": DataFacts("calibration", len(IDS), IDS.shape[1], IDS.nbytes, "0" * 64)}
    params = defaults("recover.lora", {"data": "calibration", "teacher": "model", "rank": 2, "merge": "requantize"})
    found = kinds.find("recover.lora").check(params, Inputs(facts, {"teacher": facts}, data, MACHINE))
    assert ("R606", message, "use `merge: keep`") in [(each.code, each.message, each.help) for each in found]


@pytest.mark.parametrize(("schemes", "kind", "why"), [
    (("fp8", "fp8"), "prune.wanda", "servers round the inputs of the expert `{0}` ({1}), and this step does not"),
    (("fp8", "static"), "evaluate.perplexity",
     "servers round the inputs of the expert `{0}` ({1}), and this step does not"),
    (("fp8", "fp8a16"), "evaluate.perplexity",
     "servers round the inputs of the experts `{0}` and `{2}` in different ways"),
])  # fmt: skip
def test_experts_whose_inputs_cannot_be_rounded_are_not_measured(
    tmp_path: Path, schemes: tuple[str, str], kind: str, why: str
) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    own = {"fp8": PRESETS["fp8"], "static": resolve("fp8", 8, "channel", True, static=True),
           "fp8a16": Scheme(PRESETS["fp8"].weights)}  # fmt: skip
    experts = ["model.layers.0.mlp.experts.0.down_proj", "model.layers.0.mlp.experts.1.down_proj"]
    stored = dict(zip(experts, (own[scheme] for scheme in schemes), strict=True))
    facts = replace(facts, quantization=float_quantized.config(stored))
    assert architectures.refuse("evaluate.perplexity", facts) is None
    tensors = {
        name: TensorHeader(name, dtype, shape, "", 0, 0)
        for expert in experts
        for name, dtype, shape in (
            (f"{expert}.weight", "F8_E4M3", (32, 16)),
            (f"{expert}.weight_scale", "F32", (32, 1)),
        )
    }
    found = architectures.refuse(kind, replace(facts, tensors={**facts.tensors, **tensors}))
    assert found is not None
    first = experts[0] if kind == "prune.wanda" or schemes[1] == "fp8a16" else experts[1]
    message = why.format(first, stored[first].describe(), experts[1])
    assert (found.code, found.message, found.help) == (
        "R607", message, "measure it on a server, or as it was before it was quantized"
    )  # fmt: skip
