"""What recovery steps refuse before anything runs, in whole messages, and what they forecast."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import DataFacts, Inputs
from runner.model.architecture.inspect import facts
from runner.model.checkpoint import adapter_config
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps.kinds import find
from tests.tiny import save
from tests.training.recovering import quantized

UNRECORDED = (
    "`merge: requantize` needs to know how the checkpoint was quantized, and it has no `compression.json` that says so"
)


def inputs(checkpoint: CheckpointFacts, teacher: CheckpointFacts, length: int = 16) -> Inputs:
    data = {"data": DataFacts("text", 64, length, 10**5, "")}
    return Inputs(checkpoint, {"teacher": teacher}, data, machine_facts("cpu"))


def refused(kind: str, seen: Inputs, **params: Any) -> str:
    found = find(kind).check(defaults(kind, {"data": "text"} | params), seen)
    return "\n\n".join(diagnostic.render() for diagnostic in found)


@pytest.fixture
def model(tmp_path: Path) -> CheckpointFacts:
    return facts(save(tmp_path / "model", num_hidden_layers=1), "model")


def test_nothing_is_wrong(model: CheckpointFacts) -> None:
    assert refused("recover.lora", inputs(model, replace(model))) == ""


def test_a_rank_above_the_width(model: CheckpointFacts) -> None:
    assert refused("recover.lora", inputs(model, replace(model)), rank=20, target_modules=["k_proj", "q_proj"]) == (
        "error[R472]: `rank` 20 is above the width of 1 module:\n"
        "    `model.layers.0.self_attn.k_proj` has 32 inputs and 16 outputs\n"
        "help: lower `rank` to 16 or less, or leave them out of `target_modules`"
    )


def test_a_rank_above_the_width_of_many_modules(tmp_path: Path) -> None:
    """The narrowest first, and not all of a deep model."""
    deep = facts(save(tmp_path / "deep", num_hidden_layers=3), "deep")
    assert refused("recover.lora", inputs(deep, replace(deep)), rank=20, target_modules=["k_proj", "v_proj"]) == (
        "error[R472]: `rank` 20 is above the width of 6 modules:\n"
        "    `model.layers.0.self_attn.k_proj` has 32 inputs and 16 outputs\n"
        "    `model.layers.0.self_attn.v_proj` has 32 inputs and 16 outputs\n"
        "    `model.layers.1.self_attn.k_proj` has 32 inputs and 16 outputs\n"
        "    `model.layers.1.self_attn.v_proj` has 32 inputs and 16 outputs\n"
        "    `model.layers.2.self_attn.k_proj` has 32 inputs and 16 outputs\n"
        "    and 1 more\n"
        "help: lower `rank` to 16 or less, or leave them out of `target_modules`"
    )


def test_patterns_that_match_nothing(model: CheckpointFacts) -> None:
    assert refused("recover.lora", inputs(model, replace(model)), target_modules=["q_prj", "o_proj"]) == (
        "error[R412]: `target_modules` names `q_prj`, which matches no linear module of this model\n"
        "help: its linear modules are `down_proj`, `gate_proj`, `k_proj`, `o_proj`, `q_proj`, `up_proj`, `v_proj`"
    )


def test_a_dense_checkpoint_is_not_quantized_again(model: CheckpointFacts) -> None:
    assert refused("recover.lora", inputs(model, replace(model)), merge="requantize") == (
        "error[R473]: `merge: requantize` on a checkpoint that is not quantized\n"
        "help: use `merge: auto`, which merges into it"
    )


@pytest.mark.parametrize(("made", "message", "help"), [
    ("quantize.rtn", None, None),
    ("foreign.gptqmodel",
     "`foreign.gptqmodel`, which quantized the checkpoint, cannot quantize it again with an adapter merged into it",
     "use `merge: keep`, or quantize with one of the kinds `quantize.*`"),
    ("quantize.mine", "`quantize.mine`, which quantized the checkpoint, is not installed",
     "install it, or use `merge: keep`"),
    (None, UNRECORDED, "use `merge: keep`, or quantize the model in this recipe"),
])  # fmt: skip
def test_only_what_a_layer_wise_kind_quantized_is_quantized_again(
    made: str | None, message: str | None, help: str | None, tmp_path: Path
) -> None:
    dense, packed = quantized(tmp_path, "quantize.rtn")
    if made is None:
        (packed / "compression.json").unlink()
    elif made != "quantize.rtn":
        record = json.loads((packed / "compression.json").read_text())
        (packed / "compression.json").write_text(json.dumps({**record, "kind": made}))
    seen = inputs(facts(packed, "packed"), facts(dense, "dense"))
    expected = "" if message is None else f"error[R473]: {message}\nhelp: {help}"
    assert refused("recover.lora", seen, merge="requantize") == expected
    assert refused("recover.lora", seen, merge="keep") == ""


@pytest.mark.parametrize("kind", ["recover.lora", "recover.scales"])
def test_a_checkpoint_does_not_learn_from_itself(kind: str, model: CheckpointFacts) -> None:
    assert refused(kind, inputs(model, model)) == (
        "error[R474]: `teacher` is the checkpoint itself, from which it can learn nothing\n"
        "help: let it name the model before it was compressed, or use `loss: next_token`"
    )
    assert refused(kind, inputs(model, model), loss="next_token") == ""


def test_a_second_adapter(model: CheckpointFacts) -> None:
    carrying = replace(model, adapter=adapter_config.config(4, 8, ["q_proj"]))
    assert refused("recover.lora", inputs(carrying, model)).startswith(
        "error[R471]: the checkpoint carries an adapter in `adapter/`, which fits its present weights"
    )


def test_a_teacher_of_another_vocabulary(model: CheckpointFacts) -> None:
    other = replace(model, config=ModelConfig.of({**model.config.raw, "vocab_size": 128}))
    assert refused("recover.scales", inputs(model, other)) == (
        "error[R490]: the teacher has a vocabulary of 128 tokens, the checkpoint one of 96\n"
        "help: name a teacher of the same tokenizer, or use `loss: next_token`"
    )


def test_a_teacher_of_another_tokenizer(tmp_path: Path) -> None:
    models = []
    for name, tokens in (("teacher", {"a": 0, "b": 1}), ("student", {"a": 1, "b": 0})):
        folder = save(tmp_path / name, num_hidden_layers=1)
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
        models.append(facts(folder, str(folder)))
    teacher, own = models
    assert refused("recover.lora", inputs(own, teacher)) == (
        "error[R490]: teacher and student have different tokenizers: `a` is 0 to the teacher and 1 to the student, "
        "`b` is 1 to the teacher and 0 to the student\n"
        "help: name a teacher of the same tokenizer, or use `loss: next_token`"
    )


def test_windows_longer_than_the_teacher_s_positions(model: CheckpointFacts) -> None:
    assert refused("recover.lora", inputs(model, replace(model), 128)) == (
        "error[R465]: data `text` has `sequence_length` 128; the teacher's context is 64 tokens "
        "(`max_position_embeddings` in config.json)\n"
        "help: lower `sequence_length` to 64 or less"
    )


def test_layer_wise_steps_refuse_an_adapter(model: CheckpointFacts) -> None:
    carrying = replace(model, adapter=adapter_config.config(4, 8, ["q_proj"]))
    for kind in ("quantize.rtn", "prune.magnitude"):
        params = {"bits": 4, "group_size": 16} if kind == "quantize.rtn" else {}
        found = find(kind).check(defaults(kind, params), inputs(carrying, model))
        assert [d.code for d in found] == ["R471"]


def test_forecasts(tmp_path: Path) -> None:
    """What is trained and written, by what becomes of the adapter."""
    dense, packed = (facts(folder, "x") for folder in quantized(tmp_path, "quantize.rtn"))
    kind = find("recover.lora")
    seen = inputs(packed, dense)
    params = defaults("recover.lora", {"data": "text", "rank": 4, "target_modules": ["q_proj"]})
    trained = 2 * 4 * (64 + 64)
    assert kind.estimate(params, seen).disk == packed.nbytes + 4 * trained
    assert kind.outcome(params, seen).adapter == adapter_config.config(4, 32, ["q_proj"])
    again = params | {"merge": "requantize"}
    assert kind.estimate(again, seen).disk == packed.nbytes
    assert kind.estimate(again, seen).scratch > kind.estimate(params, seen).scratch
    assert kind.outcome(again, seen) is packed
    assert kind.outcome(params, inputs(dense, packed)) is dense
    scales = find("recover.scales")
    own = defaults("recover.scales", {"data": "text"})
    assert scales.estimate(own, seen).disk == packed.nbytes
    assert scales.estimate(own, seen).memory > 0
    assert scales.outcome(own, seen) is packed


def test_adapters_take_memory_beside_activations(model: CheckpointFacts) -> None:
    """What the first factor gives, an input again in bf16, and on a CPU's heap in fp32 three freed outputs a module."""
    kind, tokens = find("recover.lora"), 2 * 16
    queries = next(i for i in model.sites if i.name.endswith("q_proj"))

    def needed(device: str, **params: Any) -> int:
        seen = inputs(model, replace(model))
        own = defaults("recover.lora", {"data": "text", "loss": "next_token", "batch_size": 2, **params})
        return int(kind.estimate(own, replace(seen, machine=replace(seen.machine, device=device))).memory)

    def of_another(device: str, precision: str) -> int:
        """Return what adapting one more module takes, of the size of those that are adapted."""
        shared = {"rank": 1, "precision": precision}
        return needed(device, target_modules=["q_proj", "o_proj"], **shared) - needed(
            device, target_modules=["q_proj"], **shared
        )

    assert of_another("cpu", "fp32") - of_another("cuda", "fp32") == tokens * 3 * 4 * queries.rows
    assert of_another("cpu", "bf16") == of_another("cuda", "bf16")
    bf16 = 2 * (queries.rows + queries.columns)  # the copies of the factors that autocast keeps
    assert of_another("cuda", "bf16") - of_another("cuda", "fp32") == tokens * 2 * queries.columns + bf16
