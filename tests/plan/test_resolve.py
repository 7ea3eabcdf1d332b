"""Recipe → Plan on the embedded model, and every complaint of the planner with its place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.contracts.step_kind import Requirement
from runner.errors import MachineError, RecipeError
from runner.model.source import hub, locate
from runner.plan import environments, machine, resolve, resolve_inputs
from runner.plan.resources import Node, Offer, machine_of
from runner.plan.types import Plan
from runner.recipe.types import ModelSpec
from runner.steps import kinds
from tests.model.checkpoints import LLAMA, write
from tests.plan.recipes import HEAD, STEPS, recipe


def resolved(steps: str = STEPS, head: str = HEAD) -> Plan:
    return resolve.resolve(recipe(steps, head), device="cpu")


def refused(steps: str = STEPS, head: str = HEAD) -> str:
    with pytest.raises(RecipeError) as caught:
        resolved(steps, head)
    return caught.value.render()


def test_the_plan_of_a_recipe() -> None:
    plan = resolved()
    assert [(s.index, s.id, s.folder, s.produces) for s in plan.steps] == [
        (0, "baseline", "01-baseline", "metrics"),
        (1, "wanda", "02-wanda", "checkpoint"),
        (2, "gptq", "03-gptq", "quantized-checkpoint"),
        (3, "quality", "04-quality", "metrics"),
    ]
    assert [dict(s.inputs) for s in plan.steps] == [
        {"checkpoint": "model"}, {"checkpoint": "model"}, {"checkpoint": "wanda"}, {"checkpoint": "gptq"},
    ]  # fmt: skip
    quality = plan.step("quality")
    assert quality.gates == {"perplexity": {"max_ratio_to": "baseline", "value": 1.25}}
    assert "gates" not in quality.params
    assert quality.data == {"data": "evaluation"}
    assert quality.key_inputs["inputs"] == {"checkpoint": plan.step("gptq").key}
    assert plan.steps[1].key_inputs["inputs"] == {"checkpoint": plan.model.digest}
    assert set(quality.key_inputs["environment"]) == {"torch", "transformers", "device"}
    assert plan.device == "cpu"
    assert plan.job_id == f"small-{plan.key[:12]}"


def test_a_key_names_the_libraries_that_decide_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind whose result depends on neither torch nor transformers is not computed anew where these are updated."""
    text = "steps:\n  - toy.score: {points: 9}\n"
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(Path(__file__).parents[1] / "commands" / "kinds"))
    (step,) = resolved(text).steps
    assert set(step.key_inputs["environment"]) == {"device", "pip"}


def test_what_steps_take() -> None:
    """The nearest earlier checkpoint, or what `from` and other parameters name."""
    plan = resolved(
        """\
        steps:
          - evaluate.perplexity: {data: evaluation}
            id: baseline
          - prune.wanda: {data: calibration}
          - quantize.gptq: {data: calibration}
          - evaluate.perplexity: {data: evaluation, gates: {perplexity: {max: 20}, loss: {max: 3}}}
          - evaluate.divergence: {data: evaluation, against: wanda}
          - quantize.rtn: {}
            from: wanda
          - evaluate.divergence: {data: evaluation}
        """
    )
    assert {step.id: dict(step.inputs) for step in plan.steps} == {
        "baseline": {"checkpoint": "model"},
        "wanda": {"checkpoint": "model"},
        "gptq": {"checkpoint": "wanda"},
        "perplexity": {"checkpoint": "gptq"},
        "divergence": {"checkpoint": "gptq", "against": "wanda"},
        "rtn": {"checkpoint": "wanda"},
        "divergence-2": {"checkpoint": "rtn", "against": "model"},
    }
    assert (plan.step("gptq").data, plan.step("rtn").data) == ({"data": "calibration"}, {})
    perplexity = plan.step("perplexity")
    assert perplexity.gates == {"perplexity": {"max": 20.0}, "loss": {"max": 3.0}}
    assert perplexity.params == {"data": "evaluation"}
    assert plan.step("rtn").gates == {}


def test_plans_are_equal_byte_for_byte(tmp_path: Path) -> None:
    """In another process, with another hash seed, with and without a cache."""
    code = (
        "import json, sys; from pathlib import Path\n"
        "from tests.plan.recipes import recipe; from runner.plan import resolve\n"
        "plan = resolve.resolve(recipe(), device='cpu', cache_file=Path(sys.argv[1]))\n"
        "print(plan.key, json.dumps([step.public() for step in plan.steps]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "digests.json")], check=True, capture_output=True, text=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2", "2")
    }  # fmt: skip
    plan = resolved()
    assert texts == {f"{plan.key} {json.dumps([step.public() for step in plan.steps])}\n"}


def test_planning_loads_nothing_heavy() -> None:
    code = (
        "import sys, tempfile; from pathlib import Path\n"
        "from tests.plan.recipes import FakeStore, recipe\n"
        "from runner.plan import preview, resolve\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    preview.preview(resolve.resolve(recipe(), device='cpu'), FakeStore(Path(folder)))\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'datasets', 'safetensors', 'compressed_tensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "PYTHONPATH": "."})


def test_gates_change_the_job_but_no_step() -> None:
    loose = resolved(STEPS.replace("1.25", "1.5"))
    plan = resolved()
    assert [s.key for s in loose.steps] == [s.key for s in plan.steps]
    assert loose.key != plan.key


def test_a_change_reaches_what_comes_after() -> None:
    before, after = resolved(), resolved(STEPS.replace("sparsity: 0.2", "sparsity: 0.3"))
    same = [b.key == a.key for b, a in zip(before.steps, after.steps, strict=True)]
    assert same == [True, False, False, False]


def test_seeds_belong_to_ids() -> None:
    plan = resolved()
    fewer = resolved(STEPS.replace("  - prune.wanda: {data: calibration, sparsity: 0.2}\n", ""))
    assert fewer.step("gptq").seed == plan.step("gptq").seed
    assert len({step.seed for step in plan.steps}) == 4


def copy_of_model(folder: Path) -> Path:
    found, _ = locate.locate_model(ModelSpec("demo:tiny-llama"))
    assert found is not None
    return Path(shutil.copytree(found, folder))


def test_the_digest_of_a_model_is_that_of_its_files(tmp_path: Path) -> None:
    folder = copy_of_model(tmp_path / "a")
    head = HEAD.replace("demo:tiny-llama", str(folder))
    plan = resolved(head=head)
    assert plan.model.digest == resolved().model.digest
    assert [s.key for s in plan.steps] == [s.key for s in resolved().steps]
    (folder / "README.md").write_text("every step writes a card of its own")
    (folder / "training_args.bin").write_bytes(b"not copied")
    assert resolved(head=head).model.digest == plan.model.digest


@pytest.mark.parametrize("name", [
    "NOTICE", "additional_chat_templates/rag.jinja", "adapter/adapter_model.safetensors",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in (
        "generation_config.json", "special_tokens_map.json", "modeling_own.py", "vocabulary.spm",
    )),
])  # fmt: skip
def test_every_file_that_is_read_or_copied_is_part_of_the_digest(tmp_path: Path, name: str) -> None:
    folder = copy_of_model(tmp_path / "a")
    head = HEAD.replace("demo:tiny-llama", str(folder))
    digests = {resolved(head=head).model.digest}
    for text in ("{}", '{"a": 1}'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        digests.add(resolved(head=head).model.digest)
    assert len(digests) == 3


def test_broken_files_of_the_tokenizer_are_complaints(tmp_path: Path) -> None:
    folder = copy_of_model(tmp_path / "a")
    (folder / "special_tokens_map.json").write_text('{\n  "pad_token": "<pad>",\n')
    (folder / "generation_config.json").write_text("[]")
    head = HEAD.replace("demo:tiny-llama", str(folder))
    place = f'    3 | model: {{source: "{folder}"}}\n      |                 {"^" * (len(str(folder)) + 2)}\n'
    assert refused(head=head) == (
        f"small.yaml:3:17: error[R448]: `{folder}/generation_config.json` must hold a JSON object; it holds a list\n"
        f"{place}"
        "help: download `generation_config.json` again; if the model needs none, delete it\n"
        "\n"
        f"small.yaml:3:17: error[R448]: `{folder}/special_tokens_map.json:3:1` is not JSON: Expecting property name "
        "enclosed in double quotes\n"
        f"{place}"
        "help: download `special_tokens_map.json` again; if the model needs none, delete it"
    )


def test_model_and_data_are_complained_about_together() -> None:
    head = HEAD.replace("demo:tiny-llama", "demo:tiny-lama").replace("split: evaluation", "split: evaluatio")
    assert refused(head=head) == (
        "small.yaml:3:17: error[R430]: there is no embedded model `demo:tiny-lama`; did you mean `tiny-llama`?\n"
        '    3 | model: {source: "demo:tiny-lama"}\n'
        "      |                 ^^^^^^^^^^^^^^^^\n"
        "help: there is `demo:tiny-llama`\n"
        "\n"
        "small.yaml:7:46: error[R466]: data `evaluation`: `demo:stdlib` has no split `evaluatio`; did you mean "
        "`evaluation`?\n"
        '    7 |   evaluation: {source: "demo:stdlib", split: evaluatio, samples: 4, sequence_length: 64}\n'
        "      |                                              ^^^^^^^^^\n"
        "help: it has `calibration`, `evaluation` and `train`"
    )


def test_data_that_no_step_uses_is_not_looked_for() -> None:
    head = HEAD.replace("split: calibration", "split: nowhere")
    plan = resolved("steps: [{quantize.rtn: {}}, {evaluate.perplexity: {data: evaluation}}]\n", head)
    assert list(plan.data) == ["evaluation"]


def test_text_shorter_than_asked() -> None:
    head = HEAD.replace("samples: 8, sequence_length: 64", "samples: 300, sequence_length: 512")
    assert refused(head=head) == (
        "small.yaml:6:69: error[R464]: data `calibration` asks for 300 windows of 512 tokens = 153,600; "
        "the text has 142,662 (278 windows)\n"
        '    6 |   calibration: {source: "demo:stdlib", split: calibration, samples: 300, sequence_length: 512}\n'
        "      |                                                                     ^^^\n"
        "help: lower `samples` to 278, or name a longer text"
    )


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    """Refused where a step needs tokens; rounding alone does without."""
    head = HEAD.replace("demo:tiny-llama", str(write(tmp_path, config=LLAMA)))
    found = refused("steps:\n  - evaluate.perplexity: {data: calibration}\n", head).splitlines()
    what = "holds no tokenizer, which turns texts into tokens: there is no tokenizer.json"
    assert found[0] == f"small.yaml:3:17: error[R448]: `{tmp_path}` {what}"
    assert found[-1] == "help: download the tokenizer of the model into that folder"
    resolved("steps:\n  - quantize.rtn: {group_size: channel}\n", head)


def test_windows_longer_than_the_context() -> None:
    head = HEAD.replace("samples: 8, sequence_length: 64", "samples: 8, sequence_length: 4096")
    assert refused(head=head) == (
        "small.yaml:6:89: error[R465]: data `calibration` has `sequence_length` 4096; the model's context is 2048 "
        "tokens (`max_position_embeddings` in config.json)\n"
        '    6 |   calibration: {source: "demo:stdlib", split: calibration, samples: 8, sequence_length: 4096}\n'
        "      |                                                                                         ^^^^\n"
        "help: lower `sequence_length` to 2048 or less"
    )


def test_data_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n')
    head = HEAD.replace('"demo:stdlib", split: calibration', f'"{path}", field: tekst')
    found = refused(head=head).splitlines()
    assert found[0].endswith(f"error[R462]: `{path}` line 1 has no field `tekst`; it has `body`")
    assert found[2].index("^") == found[1].index("tekst")


def test_complaints_of_kinds_have_their_place() -> None:
    """Those of all steps at once; what comes after a refused step is not judged by a checkpoint that nobody makes."""
    steps = """\
    steps:
      - quantize.gptq: {data: calibration, group_size: 96}
      - evaluate.perplexity: {data: evaluation}
      - quantize.rtn: {bits: 4, ignore: ["*"]}
        from: model
    """
    heads = [line for line in refused(steps).splitlines() if line.startswith("small.yaml")]
    assert [head.split(" error")[0] for head in heads] == ["small.yaml:9:52:", "small.yaml:11:29:"]


def test_a_quantized_model_cannot_be_quantized(tmp_path: Path) -> None:
    mark = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    folder = write(tmp_path, config=LLAMA | {"quantization_config": mark})
    (folder / "compression.json").write_text("{}")  # a recipe made it
    head = HEAD.replace("demo:tiny-llama", str(folder))
    assert refused("steps:\n  - quantize.rtn: {}\n", head) == (
        "small.yaml:9:5: error[R449]: `quantize.rtn` takes an unquantized checkpoint; the model is already "
        "quantized (gptq)\n"
        "    9 |   - quantize.rtn: {}\n"
        "      |     ^^^^^^^^^^^^\n"
        "help: start from the model as it was before it was quantized"
    )


def heads(text: str) -> list[str]:
    """The first line of every complaint, without the file."""
    return [line.removeprefix("small.yaml:") for line in text.splitlines() if line.startswith("small.yaml:")]


@pytest.mark.parametrize("between", ["", "  - recover.scales: {data: calibration, teacher: model}\n"])
def test_only_a_kind_that_can_quantize_again_is_asked_to(between: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_index(*_: object) -> None:
        raise MachineError("no index answers")

    monkeypatch.setattr(environments, "resolve", no_index)
    lora = "  - recover.lora: {data: calibration, teacher: model, merge: requantize, rank: 4}\n"
    resolved(f"steps:\n  - quantize.rtn: {{bits: 4}}\n{between}{lora}")
    message = refused(f"steps:\n  - foreign.gptqmodel: {{data: calibration}}\n{between}{lora}")
    assert "error[R473]: `foreign.gptqmodel`, which quantized the checkpoint, cannot quantize it again" in message


def test_a_refused_step_hides_no_other_complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run on its result is not judged; other branches, data, packages and models of steps are."""
    mark = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    folder = write(tmp_path, config=LLAMA | {"quantization_config": mark})
    (folder / "compression.json").write_text("{}")  # a recipe made it
    head = HEAD.replace('source: "demo:stdlib", split: evaluation', f'source: "{tmp_path}/none.jsonl"')
    steps = f"""\
    steps:
      - prune.wanda: {{data: calibration, ignore: [nothing]}}
      - quantize.gptq: {{data: calibration, group_size: 7777}}
      - evaluate.perplexity: {{data: evaluation}}
      - quantize.rtn: {{ignore: [nothing]}}
        from: model
      - distill.logits: {{data: calibration, teacher: {{source: "{tmp_path}/none"}}}}
        from: model
      - quantize.rtn: {{}}
        id: other
      - prune.magnitude: {{}}
        from: model
    """
    monkeypatch.setattr(kinds.find("prune.magnitude"), "REQUIRES", (Requirement("no-such-package", "extra"),))
    monkeypatch.setattr(kinds.find("quantize.gptq"), "outcome", lambda *_: pytest.fail("judged what nobody makes"))
    found = heads(refused(steps, head))
    assert found == [
        f"7:24: error[R460]: data `evaluation`: there is no file or folder `{tmp_path}/none.jsonl`",
        "9:38: error[R412]: `ignore` names `nothing`, which matches no linear module of this model",
        "12:20: error[R412]: `ignore` names `nothing`, which matches no linear module of this model",
        f"14:59: error[R430]: there is no folder `{tmp_path}/none`",
        "18:5: error[R503]: `prune.magnitude` needs the package no-such-package, which is not installed",
    ]
    found = heads(refused(steps, head.replace("demo:tiny-llama", str(folder))))
    assert [line[:18] for line in found] == [
        "3:17: error[R448]:", "7:24: error[R460]:", "9:5: error[R449]: ", "12:5: error[R449]:", "14:5: error[R449]:",
        "14:59: error[R430]", "18:5: error[R449]:", "18:5: error[R503]:",
    ]  # fmt: skip


def test_without_its_model_a_recipe_is_still_checked() -> None:
    head = HEAD.replace("demo:tiny-llama", "demo:none").replace("split: evaluation", "split: none")
    steps = """\
    steps:
      - quantize.gptq: {data: calibration, group_size: 7777}
      - evaluate.perplexity: {data: evaluation}
      - evaluate.tasks: {tasks: ["demo:none"]}
    """
    assert [line[:18] for line in heads(refused(steps, head))] == [
        "3:17: error[R430]:", "7:46: error[R466]:", "11:30: error[R469]",
    ]  # fmt: skip


TWICE = "which `gptq` has seen: the result is too good"


TRAINED = "loss: next_token, batch_size: 2"


@pytest.mark.parametrize(
    ("steps", "places"),
    [
        # by its own entry, and by another of the same file; what comes before, and other branches, have seen nothing
        (
            ["evaluate.perplexity: {data: same}", "quantize.gptq: {data: calibration}",
             "evaluate.perplexity: {data: calibration}", "evaluate.divergence: {data: same}",
             "evaluate.perplexity: {data: evaluation}", "evaluate.perplexity: {data: same}\n    from: model"],
            {12: f"`evaluate.perplexity` measures on the text of data `calibration`, {TWICE}",
             13: f"`evaluate.divergence` measures on the text of data `same` (as `calibration`), {TWICE}"},
        ),
        (
            ["quantize.gptq: {data: same}", f"recover.lora: {{data: evaluation, {TRAINED}}}",
             "evaluate.perplexity: {data: calibration}"],
            {12: f"`evaluate.perplexity` measures on the text of data `calibration` (as `same`), {TWICE}"},
        ),
        (
            [f"recover.lora: {{data: same, evaluation: calibration, {TRAINED}}}"],
            {10: "`recover.lora` measures on the text of data `calibration` (as `same`), which this step trains on: "
                 "the result is too good"},
        ),
        (
            [f"recover.lora: {{data: same, evaluation: evaluation, {TRAINED}}}",
             "evaluate.perplexity: {data: evaluation}"], {},
        ),
    ],
)  # fmt: skip
def test_measured_on_what_was_calibrated_on(steps: list[str], places: dict[int, str]) -> None:
    same = '  same: {source: "demo:stdlib", split: calibration, samples: 3, sequence_length: 32}\n'
    plan = resolved("steps:\n" + "".join(f"  - {step}\n" for step in steps), HEAD + same)
    found = {warning.span.line: warning.message for warning in plan.warnings if warning.span is not None}
    assert found == places
    assert {(warning.code, warning.severity) for warning in plan.warnings} <= {("R419", "warning")}


@pytest.mark.parametrize(("between", "source", "measured"), [
    ("", "model", None),
    ("  - prune.magnitude: {sparsity: 0.5}\n    id: pruned\n", "pruned", "model"),
    ("  - transform.rotate: {}\n    id: rotated\n", "rotated", "model"),
])  # fmt: skip
def test_a_sensitivity_of_other_weights(between: str, source: str, measured: str | None) -> None:
    steps = (
        "steps:\n  - analyze.sensitivity: {data: calibration, group_size: 64}\n    id: delicate\n" + between +
        "  - quantize.rtn: {bits: auto, sensitivity: delicate, budget: {average_bits: 4}, group_size: 64}\n"
        f"    from: {source}\n    id: small\n"
    )  # fmt: skip
    told = [(w.code, w.message, w.help, w.severity) for w in resolved(steps).warnings]
    message = f"`delicate` has measured `{measured}`, and `small` changes `{source}` by it"
    help = f"measure again: a step of `analyze.sensitivity` with `from: {source}`"
    assert told == ([] if measured is None else [("R869", message, help, "warning")])


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = kinds.find("quantize.rtn")
    monkeypatch.setattr(kind, "REQUIRES", (Requirement("no-such-package", "extra"),))
    with pytest.raises(MachineError) as caught:
        resolved("steps:\n  - quantize.rtn: {}\n")
    assert caught.value.render() == (
        "small.yaml:9:5: error[R503]: `quantize.rtn` needs the package no-such-package, which is not installed\n"
        "    9 |   - quantize.rtn: {}\n"
        "      |     ^^^^^^^^^^^^\n"
        "help: `pip install 'runner[extra]'`"
    )
    assert caught.value.exit_code == 4


def test_torch_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "package_version", lambda package: None)
    with pytest.raises(MachineError, match="torch is not installed"):
        resolved()


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_gpu", lambda: None)
    with pytest.raises(MachineError, match="shows no NVIDIA GPU"):
        resolve.resolve(recipe(), device="cuda")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_model_has_one_key_before_and_after_its_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of_model(tmp_path / COMMIT)
    facts = resolve_inputs.find_model(recipe().model, None).model.facts
    head = HEAD.replace("demo:tiny-llama", "org/name")
    monkeypatch.setattr(hub, "cached_model", lambda *_: None)
    monkeypatch.setattr(hub, "model_commit", lambda *_: COMMIT)
    monkeypatch.setattr(hub, "download_small", lambda *_: folder)
    monkeypatch.setattr(hub, "remote_facts", lambda *_: facts)
    before = resolved(head=head)
    assert (before.model.path, before.model.commit) == (None, COMMIT)
    monkeypatch.setattr(hub, "download_model", lambda *_, adapted: None if adapted else folder)
    assert resolve.with_model(before).model.path == folder
    monkeypatch.setattr(hub, "cached_model", lambda *_: folder)
    monkeypatch.setattr(hub, "lists_adapter", lambda *_: False)
    after = resolved(head=head)
    assert (after.model.path, after.model.commit, after.key) == (folder, COMMIT, before.key)


def test_counts_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.plan import counts

    cache = tmp_path / "digests.json"
    monkeypatch.setattr(counts, "_counted", {})
    first = resolve.resolve(recipe(), cache_file=cache, device="cpu")
    assert sorted(name[:7] for name in json.loads(cache.read_text())["entries"] if name.startswith("tokens:"))
    monkeypatch.setattr(counts, "_counted", {})
    monkeypatch.setattr(counts, "tokens", lambda *_: pytest.fail("counted again"))
    assert resolve.resolve(recipe(), cache_file=cache, device="cpu").key == first.key


def test_processes_that_share_a_step_are_no_part_of_its_key() -> None:
    steps = "steps:\n  - quantize.gptq: {data: calibration}\n"
    cluster = Offer("the Ray cluster", (Node(2, 10**11),))
    plain, several = (
        resolve.resolve(recipe(steps + resources), device="cpu", offer=cluster)
        for resources in ("", "    resources: {processes: 2}\n")
    )
    assert [step.processes for step in several.steps] == [2]
    assert several.steps[0].key == plain.steps[0].key
    assert several.key == plain.key


def test_steps_are_checked_against_the_machines_that_compute() -> None:
    steps = """
steps:
  - quantize.gptq: {data: calibration}
    resources: {processes: 8}
"""
    cores = machine.machine_facts("cpu").cpus
    made = recipe(steps, HEAD)
    cluster = Offer("the Ray cluster", (Node(2, 10**9), Node(64, 4 * 10**11)))
    plan = resolve.resolve(made, device="cpu", offer=cluster)
    assert plan.steps[0].processes == 8
    facts = machine_of(cluster, "cpu")
    assert (facts.cpus, facts.memory, facts.memory_available) == (64, 4 * 10**11, 4 * 10**11)
    small = Offer("the Ray cluster", (Node(2, 10**9),))
    with pytest.raises(RecipeError) as caught:
        resolve.resolve(made, device="cpu", offer=small)
    (complaint,) = caught.value.diagnostics
    assert complaint.message == "`resources: {processes: 8}` is more than the 2 cores of the machine"
    assert machine_of(None, "cpu").cpus == cores
