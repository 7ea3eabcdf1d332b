"""recover.lora on the experts of tiny random mixtures, judged by plain transformers and peft."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted
from runner.model.architecture import inspect
from runner.model.checkpoint import loading
from runner.model.checkpoint.reader import CheckpointReader
from runner.plan.resolve_inputs import described
from runner.recipe.schema.load import defaults
from runner.steps import kinds
from runner.steps.kinds import find
from runner.steps.recover import lora
from runner.training.objectives import recovery
from tests.host import Host
from tests.steps.test_experts import answers, apply, saved
from tests.sweep import IDS, MACHINE
from tests.training.recovering import perplexity, plain, with_adapter

__all__ = ["answers"]

KIND = "recover.lora"
OTHERS = 'name the others alone, such as `target_modules: ["*.self_attn.*"]`'
SETTINGS: Mapping[str, Any] = {"loss": "next_token", "rank": 2, "alpha": 8, "steps": 8, "batch_size": 4,
                               "learning_rate": 0.02, "precision": "fp32"}  # fmt: skip


def host(facts: CheckpointFacts, folder: Path, made: type[Host] = Host, **params: Any) -> Host:
    """The step on a described mixture, which sees four windows again and again."""
    own = made(folder, KIND, Path(facts.tokenizer or ""), IDS[:4], **{**SETTINGS, **params})
    sites = tuple(site.name for site in facts.sites)
    own.inputs = {"checkpoint": replace(own.inputs["checkpoint"], sites=sites, linears=facts.linears)}
    return own


def run(facts: CheckpointFacts, folder: Path, **params: Any) -> tuple[Host, Any]:
    own = host(facts, folder, **params)
    return own, find(KIND).run(own)


def losses(own: Host) -> list[float]:
    return [event["loss"] for event in own.events if event["event"] == "train"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS[:8]).logits
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def planned(facts: CheckpointFacts, **params: Any) -> tuple[dict[str, Any], Inputs]:
    data = {"data": DataFacts("calibration", len(IDS), IDS.shape[1], IDS.nbytes, "0" * 64)}
    return defaults(KIND, {"data": "calibration", **SETTINGS, **params}), Inputs(facts, {}, data, MACHINE)


def refusals(facts: CheckpointFacts, **params: Any) -> list[tuple[str, str, str | None]]:
    return [(each.code, each.message, each.help) for each in find(KIND).check(*planned(facts, **params))]


@pytest.mark.parametrize(("model_type", "fused"), [
    ("mixtral", False),
    ("granitemoe", True),
    ("gpt_oss", True),  # with biases, stored [experts, in, out]
    pytest.param("qwen3_moe", False, marks=pytest.mark.nightly),
])  # fmt: skip
def test_what_is_kept_and_what_is_merged_are_what_peft_makes_of_it(
    tmp_path: Path, model_type: str, fused: bool
) -> None:
    facts = saved(tmp_path / "model", model_type)
    assert refusals(facts, merge="keep") == refusals(facts) == []
    kept, result = run(facts, tmp_path / "kept", merge="keep")
    assert losses(kept)[-1] < 0.95 * losses(kept)[0]

    # what was trained, and what plain peft loads
    arguments = json.loads((kept.scratch_dir / "training" / "fitted.json").read_text())["label"]["arguments"]
    trained = recovery.adapters(arguments, "cpu").model.eval()
    trained.load_state_dict(load_file(kept.scratch_dir / "training" / "weights.safetensors"), strict=False)
    adapted = with_adapter(plain(kept.out_dir), kept.out_dir)
    torch.testing.assert_close(logits(adapted), logits(trained), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(adapted), logits(plain(tmp_path / "model")), atol=0.1)
    made = described(inspect.facts(kept.out_dir, "made"), kept.out_dir)
    assert find(KIND).outcome(*planned(facts, merge="keep")).adapter == made.adapter
    measured = apply(made, tmp_path / "measured", "evaluate.perplexity", IDS).metrics["perplexity"]
    assert measured == pytest.approx(perplexity(adapted, IDS), rel=1e-5)

    # the number of its parameters
    stored = load_file(kept.out_dir / "adapter" / "adapter_model.safetensors")
    numbers = sum(tensor.numel() for tensor in stored.values())
    assert result.metrics["adapter_parameters"] == numbers
    assert find(KIND).estimate(*planned(facts, merge="keep")).disk == facts.nbytes + 4 * numbers
    assert kinds.trains(find(KIND), *planned(facts)) == (
        f"{numbers:,} parameters, adapters of rank 2 for 16 linear modules and 16 experts"
    )

    # merged, in the layout of the source
    merged, other = run(facts, tmp_path / "merged")
    assert other.details["merge"] == "merge"
    torch.testing.assert_close(logits(plain(merged.out_dir)), logits(adapted.merge_and_unload()), rtol=1e-5, atol=1e-5)
    changed = lora.changes(*planned(facts))
    assert any(".experts." in name for name in changed) or fused
    with CheckpointReader(tmp_path / "model") as before, CheckpointReader(merged.out_dir) as after:
        assert before.headers == after.headers
        assert {name for name in before.names() if not torch.equal(before.read(name), after.read(name))} == set(changed)
    assert {name for name, fate in other.account.fates.items() if fate.fate == "changed"} == set(changed)


def test_some_layers_and_parameters_alone(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    params = {"target_modules": ["*.layers.1.*.w2", "*.layers.2.*.w1", "*.layers.2.*.w3", "*.3.self_attn.q_proj"],
              "variant": "rslora"}  # fmt: skip
    kept, _ = run(facts, tmp_path / "kept", merge="keep", **params)
    config = json.loads((kept.out_dir / "adapter" / "adapter_config.json").read_text())
    assert config["target_parameters"] == [
        "model.layers.1.mlp.experts.down_proj", "model.layers.2.mlp.experts.gate_up_proj",
    ]  # fmt: skip
    assert config["target_modules"] == ["model.layers.3.self_attn.q_proj"]
    merged, _ = run(facts, tmp_path / "merged", **params)
    adapted = with_adapter(plain(kept.out_dir), kept.out_dir)
    assert not torch.allclose(logits(adapted), logits(plain(tmp_path / "model")), atol=1e-2)
    torch.testing.assert_close(logits(plain(merged.out_dir)), logits(adapted), rtol=1e-5, atol=1e-5)


def test_zeros_of_pruned_experts_stay(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "granitemoe")
    apply(facts, tmp_path / "prune", "prune.magnitude", None, sparsity=0.5)
    out = tmp_path / "prune" / "out"
    pruned = described(inspect.facts(out, "pruned"), out)
    own, _ = run(pruned, tmp_path / "lora")
    assert losses(own)[-1] < losses(own)[0]
    with CheckpointReader(out) as before, CheckpointReader(own.out_dir) as after:
        for name in lora.changes(*planned(pruned)):
            old, new = before.read(name), after.read(name)
            assert float((old == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
            assert torch.equal(old == 0, new == 0)
            assert not torch.equal(old, new)
    trained = perplexity(plain(own.out_dir), IDS[:4])
    assert trained == pytest.approx(math.exp(losses(own)[-1]), rel=0.2)
    assert trained < perplexity(plain(out), IDS[:4])


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """The merged weights are the float32 ones, rounded; peft rounds the product and then the sum."""
    facts = saved(tmp_path / "float32", "mixtral")
    model = plain(tmp_path / "float32").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    facts = described(inspect.facts(tmp_path / "model", "model"), tmp_path / "model")
    kept, _ = run(facts, tmp_path / "kept", merge="keep", precision="bf16", gradient_checkpointing=True)
    merged, _ = run(facts, tmp_path / "merged", precision="bf16", gradient_checkpointing=True)
    assert losses(kept)[-1] < losses(kept)[0]
    exact = with_adapter(plain(kept.out_dir), kept.out_dir).merge_and_unload().state_dict()
    ours = plain(merged.out_dir).state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor, exact[name].to(torch.bfloat16).float()), name


class Stopping(Host):
    """Asks to stop after three steps of training."""

    def safe_point(self) -> None:
        if sum(event["event"] == "train" for event in self.events) >= 3:
            raise Interrupted("stopped")


@pytest.mark.parametrize("merge", ["merge", pytest.param("keep", marks=pytest.mark.nightly)])
def test_an_interrupted_step_ends_with_the_same_bytes(tmp_path: Path, merge: str) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    own: dict[str, Any] = {"merge": "auto" if merge == "merge" else merge, "steps": 6}
    whole, _ = run(facts, tmp_path / "whole", **own)
    with pytest.raises(Interrupted):
        find(KIND).run(host(facts, tmp_path / "stopped", Stopping, **own))
    again, _ = run(facts, tmp_path / "stopped", **own)
    assert next(event["at"] for event in again.events if event["event"] == "train") > 3
    assert files(whole.out_dir) == files(again.out_dir)


def test_a_parameter_is_adapted_as_a_whole(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    name = "model.layers.0.block_sparse_moe.experts"
    what = (
        "`target_modules` names only some of the matrices that transformers holds in "
        "`model.layers.0.mlp.experts.{}`, which peft adapts as a whole: `{}` is not among them"
    )
    gate_up = f"name `{name}.*.w1` and `{name}.*.w3`, or none of them"
    assert refusals(facts, target_modules=["*.experts.*.w1"]) == [
        ("R609", what.format("gate_up_proj", f"{name}.0.w3"), gate_up)
    ]
    assert refusals(facts, target_modules=["*.0.*.experts.[0-2].w2"]) == [
        ("R609", what.format("down_proj", f"{name}.3.w2"), f"name `{name}.*.w2`, or none of them")
    ]
    assert refusals(facts, target_modules=["*.experts.*.w1", "*.experts.*.w3"]) == []


def test_what_peft_has_for_modules_alone(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "granitemoe")
    what = "`model.layers.0.block_sparse_moe.experts.0.down_proj` and 47 more of a mixture would get an adapter"
    found = refusals(facts, dropout=0.1, variant="dora")
    assert [(code, message.partition("; ")[2], help) for code, message, help in found] == [
        ("R610", "peft has no dropout for experts, whose adapter is added to their weights",
         f"set `dropout: 0`, or {OTHERS}"),
        ("R610", "peft has no DoRA for experts", f"use `variant: lora` or `rslora`, or {OTHERS}"),
    ]  # fmt: skip
    assert {message.partition("; ")[0] for _, message, _ in found} == {what}
    assert refusals(facts, dropout=0.1, variant="dora", target_modules=["*.self_attn.*"]) == []


def test_packed_experts(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "qwen3_moe")
    apply(facts, tmp_path / "step", "quantize.rtn", None, bits=4, group_size=8, ignore=["*.self_attn.*"])
    out = tmp_path / "step" / "out"
    packed = described(inspect.facts(out, "packed"), out)
    assert refusals(packed) == [(
        "R605",
        ("`model.layers.0.mlp.experts.0.down_proj` and 47 more of a mixture would get an adapter; that is trained over "
         "weights in floating point, and this checkpoint is quantized"),
        f"put the step before the quantization, or {OTHERS}",
    )]  # fmt: skip
    assert refusals(packed, target_modules=["*.self_attn.*"]) == []


def test_a_rank_above_the_width_of_experts(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    listed = "".join(
        f"\n    `model.layers.{layer}.mlp.experts.{key}` has {columns} inputs and {rows} outputs"
        for layer in range(4)
        for key, columns, rows in (("gate_up_proj", 32, 128), ("down_proj", 64, 32))
    )
    message = (
        f"`rank` 33 is above the width of 8 modules:{''.join(listed.splitlines(True)[:6]).rstrip()}\n    and 3 more"
    )
    assert refusals(facts, rank=33, target_modules=["*.experts.*"]) == [
        ("R472", message, "lower `rank` to 32 or less, or leave them out of `target_modules`")
    ]


def test_modules_that_peft_takes_for_experts(tmp_path: Path) -> None:
    """They are merged rightly, and refused where the adapter is to be kept: peft would leave them out."""
    facts = saved(tmp_path / "model", "deepseek_v3")
    assert refusals(facts, merge="keep") == [(
        "R611",
        ("peft would not load a kept adapter of `model.layers.0.mlp.down_proj` and 11 more: in a `deepseek_v3` it "
         "takes such names for others"),
        "leave them out of `target_modules`, or merge the adapter (on a dense checkpoint `merge: auto`)",
    )]  # fmt: skip
    assert refusals(facts, merge="keep", target_modules=["*.self_attn.*", "*.experts.*"]) == []
    terms = defaults("recover.eora", {"data": "calibration", "rank": 2, "ignore": ["*.experts.*", "*.self_attn.*"]})
    inputs = replace(planned(facts)[1], others={"against": facts})
    assert [(each.code, each.message, each.help) for each in find("recover.eora").check(terms, inputs)] == [
        (*refusals(facts, merge="keep")[0][:2], "leave them out: name them in `ignore`")
    ]
    assert refusals(facts) == []
    merged, _ = run(facts, tmp_path / "merged")
    changed = set(lora.changes(*planned(facts)))
    assert any("shared_experts" in name for name in changed)
    with CheckpointReader(tmp_path / "model") as before, CheckpointReader(merged.out_dir) as after:
        assert {name for name in before.names() if not torch.equal(before.read(name), after.read(name))} == changed


def test_a_kept_adapter_of_experts_is_refused_where_it_cannot_go(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    params, inputs = planned(facts, merge="keep")
    made = replace(inputs, checkpoint=find(KIND).outcome(params, inputs))
    assert "R471" in [each.code for each in find(KIND).check(params, made)]
    for kind, code in (("quantize.rtn", "R471"), ("build.gguf", "R471"), ("build.onnx", "R477")):
        assert code in [each.code for each in find(kind).check(defaults(kind, {}), made)], kind
    for server, untried in (
        ("vllm", "whether vLLM takes an adapter of experts has not been tried"),
        ("tensorrt-llm", "whether it takes an adapter beside weights has not been tried"),
    ):
        assert loading.verdict(server, made.checkpoint, None).describe() == f"{server} may load it: {untried}"
    assert loading.verdict("transformers", made.checkpoint, None).describe() == "transformers loads it natively"


def test_the_card_says_what_is_adapted(tmp_path: Path) -> None:
    facts = saved(tmp_path / "model", "mixtral")
    own, _ = run(facts, tmp_path / "kept", merge="keep", steps=1)
    card = (own.out_dir / "README.md").read_text()
    assert (
        "- An adapter of rank 2 beside them, in `adapter/`: load it too.\n"
        "- It adapts the experts of 4 layers, each by factors of its own.\n"
    ) in card
    assert 'and its adapter (`pip install "peft>=0.21"`):' in card
    assert "Whether vLLM takes an adapter of experts has not been tried; one that is merged needs no trial." in card


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", [
    "bailing_hybrid", "cohere2_moe", "flex_olmo", "granitemoehybrid", "jamba", "kimi_linear", "lfm2_moe",
    "mimo_v2_flash", "minimax", "minimax_m2", "minimax_m3_vl_text", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe",
])  # fmt: skip
def test_types_of_mixtures(tmp_path: Path, model_type: str) -> None:
    facts = saved(tmp_path / "model", model_type)
    assert refusals(facts, merge="keep") == []
    kept, _ = run(facts, tmp_path / "kept", merge="keep", steps=2)
    merged, _ = run(facts, tmp_path / "merged", steps=2)
    adapted = with_adapter(plain(kept.out_dir), kept.out_dir)
    assert not torch.allclose(logits(adapted), logits(plain(tmp_path / "model")), atol=1e-3)
    torch.testing.assert_close(logits(plain(merged.out_dir)), logits(adapted), rtol=1e-4, atol=1e-4)
