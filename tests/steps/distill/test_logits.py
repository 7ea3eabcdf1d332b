"""`distill.logits` from its parameters to the checkpoint, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted, RecipeError
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.derived import Selection
from runner.plan.machine import machine_facts
from runner.plan.resolve import resolve
from runner.recipe.load import loads
from runner.steps.distill import features, logits, pair
from tests.host import Host
from tests.steps.distill.training import Stopping, digests, kl, model_of
from tests.tiny import save, tokens

TINY_LLAMA = Path(__file__).parents[3] / "runner" / "demo" / "models" / "tiny-llama"
TRAINING: dict[str, Any] = {"batch_size": 4, "steps": 30, "learning_rate": 2e-3, "precision": "fp32"}
IDS = tokens(windows=16)
LAYERS = "a number of layers, 1 or more, or a list of layer numbers counted from 0"
STUDENT = "a mapping with `layers` or `drop`, for a cut of the checkpoint, or with `source`, for another model"
WHOLE = "left out beside `source`: the other model is trained whole"


def host(tmp_path: Path, teacher: Path, own: Path | None = None, cls: type[Host] = Host, **params: Any) -> Host:
    settings = TRAINING | params
    return cls(tmp_path, "distill.logits", own or teacher, IDS, others={"teacher": teacher}, **settings)


def inputs_of(folder: Path, **others: Path) -> Inputs:
    given: dict[str, CheckpointFacts] = {name: facts(path, str(path)) for name, path in others.items()}
    data = {"data": DataFacts("text", 16, 24, 0, "")}
    return Inputs(
        facts(folder, str(folder)), {"teacher": facts(folder, str(folder)), **given}, data, machine_facts("cpu")
    )


@pytest.mark.parametrize("divergence", ["forward", pytest.param("reverse", marks=pytest.mark.nightly), "js"])
def test_a_cut_student_ends_nearer_to_its_teacher(divergence: str, tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama", dtype=torch.bfloat16)
    made = host(tmp_path, teacher, student={"layers": 2}, divergence=divergence, alpha=0.0, top_k=32)
    result = logits.run(made)
    cut, out = tmp_path / "scratch" / "student", tmp_path / "out"
    assert kl(teacher, out, IDS) < 0.8 * kl(teacher, cut, IDS)
    assert model_of(out).config.num_hidden_layers == 2
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert result.metrics["steps"] == 30
    assert result.metrics["tokens"] == 30 * 4 * 24
    influence = result.details["influence"]
    kept = result.details["kept_layers"]
    assert kept == sorted(sorted(range(3), key=lambda layer: influence[layer])[1:])
    assert {"teacher", "text"} == result.details["curve"][0]["parts"].keys()
    layers = [(e["layer"], e["layers"]) for e in made.events if e["event"] == "layer"]
    assert layers == [(i, 6) for i in range(1, 7)]


def test_layers_are_chosen_evenly_or_by_name(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    even = logits.run(host(tmp_path / "even", teacher, student={"layers": 2, "choose": "even"}, steps=1))
    assert even.details["kept_layers"] == [0, 2]
    assert "influence" not in even.details
    named = logits.run(host(tmp_path / "named", teacher, student={"layers": [1, 2]}, steps=1))
    assert named.details["kept_layers"] == [1, 2]
    first = load_file(tmp_path / "named" / "scratch" / "student" / "model.safetensors")
    source = load_file(teacher / "model.safetensors")
    assert torch.equal(first["model.layers.0.mlp.up_proj.weight"], source["model.layers.1.mlp.up_proj.weight"])


def test_a_pruned_checkpoint_heals_and_keeps_its_zeros(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    pruned = shutil.copytree(teacher, tmp_path / "pruned")
    weights = load_file(teacher / "model.safetensors")
    for name, weight in weights.items():
        if "_proj" in name:
            weight[weight.abs() < weight.abs().median()] = 0
    save_file(weights, pruned / "model.safetensors", {"format": "pt"})
    logits.run(host(tmp_path, teacher, pruned))
    assert kl(teacher, tmp_path / "out", IDS) < 0.8 * kl(teacher, pruned, IDS)
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        if "_proj" in name:
            assert torch.equal(weight == 0, weights[name] == 0)


def test_another_model_learns_from_the_checkpoint(tmp_path: Path) -> None:
    """Of another architecture, with a table padded beyond the teacher's."""
    teacher = save(tmp_path / "teacher", "llama")
    other = save(tmp_path / "other", "gpt2", vocab_size=104)
    for folder in (teacher, other):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {f"t{i}": i for i in range(96)}}}))
    made = Host(tmp_path, "distill.logits", teacher, IDS, others={"teacher": teacher, "student": other},
                student={"source": str(other)}, **TRAINING)  # fmt: skip
    result = logits.run(made)
    assert model_of(tmp_path / "out").config.model_type == "gpt2"
    assert kl(teacher, tmp_path / "out", IDS) < 0.9 * kl(teacher, other, IDS)
    assert "kept_layers" not in result.details


@pytest.mark.nightly
def test_alpha_one_is_plain_fine_tuning(tmp_path: Path) -> None:
    """Two teachers, one result: with α = 1 nothing of the teacher reaches the student, with α = 0 it does."""
    teachers = [save(tmp_path / f"teacher-{i}", "llama", rms_norm_eps=eps) for i, eps in enumerate((1e-6, 0.5))]
    own = save(tmp_path / "own", "llama", num_hidden_layers=2)
    for alpha, same in ((1.0, True), (0.0, False)):
        folders = [tmp_path / f"{alpha}-{i}" for i in range(2)]
        for folder, teacher in zip(folders, teachers, strict=True):
            logits.run(host(folder, teacher, own, alpha=alpha, steps=3))
        found = [digests(folder / "out")["model.safetensors"] for folder in folders]
        assert (found[0] == found[1]) is same


@pytest.mark.parametrize(  # in the training; nightly also in the teacher, in the choice of layers and at the borders
    "stop",
    [
        {"train": 4},
        *(
            pytest.param(stop, marks=pytest.mark.nightly)
            for stop in ({"layer": 1}, {"layer": 5}, {"layer": 6}, {"train": 1})
        ),
    ],
)  # fmt: skip
def test_an_interrupted_step_ends_with_the_same_bytes(stop: dict[str, int], tmp_path: Path) -> None:
    """While influence is measured, while the teacher runs, before its logits, and in training."""
    teacher = save(tmp_path / "teacher", "llama")
    own: dict[str, Any] = {"student": {"layers": 2}, "steps": 6}
    whole = logits.run(host(tmp_path / "whole", teacher, **own))
    with pytest.raises(Interrupted):
        logits.run(host(tmp_path, teacher, cls=Stopping.after(**stop), **own))
    again = logits.run(host(tmp_path, teacher, **own))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")
    assert again.details == whole.details


def test_windows_that_are_not_trained_on_are_not_asked_about(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    logits.run(host(tmp_path, teacher, steps=2, batch_size=2, top_k=7))
    assert (tmp_path / "scratch" / "teacher" / "logits").stat().st_size == 4 * 23 * 7 * 2


def test_the_outcome_is_what_is_written_and_the_forecast_holds_it(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama", dtype=torch.bfloat16)
    made = host(tmp_path, teacher, student={"layers": 2}, steps=2)
    inputs = inputs_of(teacher)
    assert logits.check(made.params, inputs) == []
    forecast, cost = logits.outcome(made.params, inputs), logits.estimate(made.params, inputs)
    logits.run(made)
    written = facts(made.out_dir, "written")
    assert forecast.tensors.keys() == written.tensors.keys()
    assert cost.disk == written.nbytes == forecast.nbytes
    used = sum(path.stat().st_size for path in made.scratch_dir.rglob("*") if path.is_file())
    assert used < cost.scratch
    assert cost.memory > student_bytes(forecast)
    assert logits.estimate(made.params | {"top_k": 10_000}, inputs).scratch > cost.scratch + 8 * 23 * 4 * 9_000
    whole_params = {name: value for name, value in made.params.items() if name != "student"}
    beside = whole_params | {"hidden_weight": 1.0, "attention_weight": 0.0, "logits_weight": 1.0}
    assert logits.estimate(whole_params, inputs).disk == facts(teacher, "teacher").nbytes
    alone = pair.trained(whole_params, inputs).memory
    assert features.estimate(beside, inputs).memory > alone + 2 * inputs.others["teacher"].parameters
    assert (
        features.estimate(beside | {"attention_weight": 1.0}, inputs).memory > features.estimate(beside, inputs).memory
    )


def student_bytes(forecast: CheckpointFacts) -> int:
    """float32 weights, gradients and the two moments of AdamW."""
    return 16 * forecast.parameters


def complaints(folder: Path, step: str, sequence_length: int = 32) -> str:
    """The rendered complaints about one step on a model in `folder`, with the embedded tokenizer and text."""
    if not (folder / "tokenizer.json").exists():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY_LLAMA / name, folder / name)
    data = f"{{source: demo:stdlib, split: train, samples: 8, sequence_length: {sequence_length}}}"
    text = f"version: 1\nname: refused\nmodel: {{source: {folder}}}\ndata: {{text: {data}}}\nsteps:\n  - {step}\n"
    with pytest.raises(RecipeError) as caught:
        resolve(loads(text, "refused.yaml"))
    return caught.value.render()


def model(tmp_path: Path, name: str = "model", **changes: Any) -> Path:
    return save(tmp_path / name, "llama", **{"vocab_size": 4096, **changes})


def rendered(step: str, place: str, complaint: str, help: str, marked: str | None = None) -> str:
    """How a complaint about `place` of the step is shown; `marked` of it is underlined."""
    column = len("  - ") + step.index(place)
    under = " " * column + "^" * len(place if marked is None else marked)
    return f"refused.yaml:6:{column + 1}: error[{complaint}\n    6 |   - {step}\n      | {under}\nhelp: {help}"


def test_more_layers_than_there_are(tmp_path: Path) -> None:
    step = "distill.logits: {data: text, student: {layers: 4}}"
    assert complaints(model(tmp_path), step) == rendered(
        step, "4", "R491]: `layers` asks for 4 decoder layers; the checkpoint has 3", "keep 3 or fewer"
    )


def test_layers_out_of_range(tmp_path: Path) -> None:
    step = "distill.logits: {data: text, student: {layers: [0, 3]}}"
    assert complaints(model(tmp_path), step) == rendered(
        step, "3", "R491]: `layers` names layer 3; the checkpoint has the layers 0 to 2", "layers count from 0"
    )


@pytest.mark.parametrize(("layers", "remedy"), [("[1, 0, 2]", "[0, 1, 2]"), ("[1, 1]", "[1]")])
def test_layers_out_of_order(layers: str, remedy: str, tmp_path: Path) -> None:
    step = f"distill.logits: {{data: text, student: {{layers: {layers}}}}}"
    assert complaints(model(tmp_path), step) == rendered(
        step, "layers", f"R491]: `layers` must name each layer once, in rising order; got {layers}", f"write {remedy}"
    )


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("{layers: []}", f"error[R201]: `student.layers` must be {LAYERS}; got a list"),
        ("{layers: 0}", f"error[R204]: `student.layers` must be {LAYERS}; got 0"),
        ("{choose: even}", f"error[R201]: `student` must be {STUDENT}; got a mapping"),
        ("{layers: 2, source: org/name}", f"error[R208]: `student.layers` must be {WHOLE}; got 2"),
    ],
)
def test_forms_of_a_student(student: str, message: str) -> None:
    text = "version: 1\nname: r\nmodel: {source: demo:tiny-llama}\n"
    text += "data: {text: {source: demo:stdlib, split: train, sequence_length: 8, samples: 8}}\n"
    with pytest.raises(RecipeError) as caught:
        loads(f"{text}steps:\n  - distill.logits: {{data: text, student: {student}}}\n", "refused.yaml")
    assert message in caught.value.render()


def test_another_tokenizer_names_tokens(tmp_path: Path) -> None:
    folder, other = model(tmp_path), model(tmp_path, "other")
    tokenizer = json.loads((TINY_LLAMA / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    vocabulary[names[300]], vocabulary[names[301]] = 301, 300
    removed = {names[4000], names[4001]}
    for token in removed:
        vocabulary.pop(token)
    merges = tokenizer["model"]["merges"]  # a tokenizer with merges of tokens that it lacks does not load
    tokenizer["model"]["merges"] = [pair for pair in merges if not removed & {*pair, "".join(pair)}]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    step = f"distill.logits: {{data: text, teacher: {{source: {other}}}}}"
    complaint = (
        f"R490]: teacher and student have different tokenizers: `{names[300]}` is 301 to the teacher and 300 to the "
        f"student, `{names[301]}` is 300 to the teacher and 301 to the student, `{names[4000]}` (4000) is "
        "only in the student's, 1 more token differs"
    )
    assert complaints(folder, step) == rendered(step, "teacher", complaint, "distil between models of one tokenizer")
    with pytest.raises(RecipeError) as caught:  # a model of the Hub is at hand only when the step runs
        logits.run(host(tmp_path, other, folder))
    assert caught.value.render() == f"error[{complaint}\nhelp: distil between models of one tokenizer"


def test_another_vocabulary(tmp_path: Path) -> None:
    """Without tokenizers at hand the numbers of logits are compared."""
    folder, other = save(tmp_path / "model", "llama"), save(tmp_path / "other", "llama", vocab_size=100)
    found = logits.check(host(tmp_path, folder).params, inputs_of(folder, teacher=other))
    message = "the teacher has a vocabulary of 100 tokens, the student one of 96"
    assert [complaint.message for complaint in found] == [message]
    assert found[0].help == "distil between models of one tokenizer"


def test_a_teacher_with_a_shorter_context(tmp_path: Path) -> None:
    folder, other = model(tmp_path), model(tmp_path, "other", max_position_embeddings=16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_LLAMA / name, other / name)
    step = f"distill.logits: {{data: text, teacher: {{source: {other}}}}}"
    complaint = (
        "R465]: data `text` has `sequence_length` 32; the teacher's context is 16 tokens (`max_position_embeddings` in "
        "config.json)"
    )
    assert complaints(folder, step) == rendered(step, "teacher", complaint, "lower `sequence_length` to 16 or less")


def test_a_layer_map_out_of_range(tmp_path: Path) -> None:
    pairs = "[{student: 0, teacher: 3}, {student: 2, teacher: 1}]"
    step = f"distill.features: {{data: text, student: {{layers: 2}}, layers: {pairs}}}"
    assert complaints(model(tmp_path), step).split("\n\n") == [
        rendered(
            step,
            "3}",
            "R492]: entry 1 of `layers` names layer 3 of the teacher, which has the layers 0 to 2",
            "layers count from 0",
            "3",
        ),
        rendered(
            step,
            "2, teacher",
            "R492]: entry 2 of `layers` names layer 2 of the student, which has the layers 0 to 1",
            "layers count from 0",
            "2",
        ),
    ]


def test_nothing_to_learn(tmp_path: Path) -> None:
    step = "distill.features: {data: text, hidden_weight: 0, logits_weight: 0}"
    complaint = "R494]: `hidden_weight`, `attention_weight` and `logits_weight` are all 0: nothing is left to learn"
    assert complaints(model(tmp_path), step) == rendered(step, "0, logits", complaint, "leave one of them out", "0")


def test_adapters_are_not_trained_around(tmp_path: Path) -> None:
    """One beside the student would no longer fit; that of a teacher acts."""
    folder = save(tmp_path / "model", "llama")
    params = host(tmp_path, folder).params
    own = inputs_of(folder)
    carrying = replace(own.checkpoint, adapter={"peft_type": "LORA", "r": 4})
    (found,) = logits.check(params, replace(own, checkpoint=carrying))
    assert found.code == "R471"
    assert "training would change those" in found.message
    assert logits.check(params, replace(own, others={"teacher": carrying})) == []
    wider = params | {"hidden_weight": 1.0, "attention_weight": 0.0, "logits_weight": 1.0}
    assert features.check(wider, replace(own, others={"teacher": carrying})) == []


def test_a_quantized_student_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    own = inputs_of(folder)
    packed = replace(own.checkpoint, quantization={"quant_method": "gptq"})
    params = host(tmp_path, folder).params | {"student": {"source": "org/name"}}
    (found,) = logits.check(params, replace(own, others={**own.others, "student": packed}))
    assert found.render() == (
        "error[R449]: `student` names a quantized checkpoint, whose integers take no gradient\n"
        "help: name it as it was before it was quantized"
    )


def test_a_student_of_an_architecture_that_is_not_trained_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the step changes, also where it is not the main input."""
    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    save(tmp_path / "moe", "qwen3_moe", vocab_size=4096, **experts)
    monkeypatch.chdir(tmp_path)
    step = "distill.logits: {data: text, teacher: model, student: {source: ./moe}}"
    complaint = (
        "R441]: `./moe` (`qwen3_moe`) is a mixture of experts: it holds `model.layers.0.mlp.experts.gate_up_proj`; "
        "`distill.logits` cannot change mixtures yet"
    )
    help = (
        "kinds that can are `analyze.sensitivity`, `evaluate.divergence`, `evaluate.perplexity`, `prune.depth`, "
        "`prune.experts`, `prune.magnitude`, `prune.sparsegpt`, `prune.wanda`, `quantize.gptq`, `quantize.rtn`, "
        "`recover.eora` and `recover.lora`"
    )
    assert complaints(model(tmp_path), step) == rendered(step, "distill.logits", complaint, help)


def test_the_cut_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    logits.run(host(tmp_path, teacher, student={"layers": 2}, steps=1))
    monkeypatch.setattr(Selection, "write", None)
    logits.run(host(tmp_path, teacher, student={"layers": 2}, steps=1))
