"""The code that a model brings runs only with `--trust-remote-code`, and nothing in a recipe can ask for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import tiny
from tests.commands.conftest import Run

RECIPE = """\
version: 1
name: own
model: {source: model}
data: {text: {source: text.txt, sequence_length: 8}}
steps: [{quantize.rtn: {bits: 8, group_size: channel}}, {evaluate.perplexity: {data: text}}]
"""
CONFIG = """\
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODELING = """\
from pathlib import Path
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

Path("RAN").write_text("the model's own code ran")

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
UNKNOWN = (
    "own.yaml:3:17: error[R440]: `model` has the model type `own_llama`, which the installed transformers does not "
    "know as a causal language model"
)
REMEDY = (
    "help: the model brings its own code (configuration_own.py, modeling_own.py), which is not run: read it, then give "
    "`--trust-remote-code`; or use a checkpoint converted to an architecture of transformers"
)
OTHER = (
    "help: its code is in another repository, or has no AutoConfig and AutoModelForCausalLM, so it is not run; use a "
    "checkpoint converted to an architecture of transformers"
)


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A model that brings its own code, which leaves a file behind when it runs; own.yaml quantizes it."""
    monkeypatch.delenv("RUNNER_STEPS_PATH")
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder / "modules"))
    monkeypatch.setenv("RUNNER_TRUST_REMOTE_CODE", "1")  # what a shell has set counts for nothing
    path = tiny.letters(tiny.save(folder / "model"))
    (path / "configuration_own.py").write_text(CONFIG)
    (path / "modeling_own.py").write_text(MODELING.replace('"RAN"', repr(str(folder / "ran"))))
    describe(path, model_type="own_llama", architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
    (folder / "own.yaml").write_text(RECIPE)
    (folder / "text.txt").write_text("a b c d e f g h i j k l m n o p " * 8)
    capsys.readouterr()  # what saving a model says
    return path


def describe(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("command", ["validate", "plan", "apply"])
def test_without_the_flag_it_is_refused_and_never_runs(run: Run, folder: Path, model: Path, command: str) -> None:
    code, out, err = run(command, "own.yaml")
    assert (code, (out + err).splitlines()[0], (out + err).splitlines()[-1]) == (
        2,
        UNKNOWN,
        REMEDY,
    )
    assert "RUNNER_TRUST_REMOTE_CODE" not in os.environ
    assert not (folder / "ran").exists()


@pytest.mark.nightly
def test_with_the_flag_it_runs_and_its_code_is_part_of_the_key(run: Run, folder: Path, model: Path) -> None:
    assert run("apply", "own.yaml", "--trust-remote-code", "--progress", "none")[0] == 0
    assert (folder / "ran").exists()
    (job,) = (folder / "jobs").glob("own-*")
    assert {"configuration_own.py", "modeling_own.py"} <= {path.name for path in (job / "output").iterdir()}
    with open(model / "modeling_own.py", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    steps = json.loads(run("plan", "own.yaml", "--trust-remote-code", "--json")[1])["steps"]
    assert [step["reason"] for step in steps] == ["model changed", "input step `rtn` runs again"]


@pytest.mark.nightly
def test_with_the_flag_it_is_trained(run: Run, folder: Path, model: Path) -> None:
    training = {"data": "text", "steps": 2, "batch_size": 2}
    lora = {"loss": "next_token", "rank": 2, "target_modules": ["q_proj"]}
    steps = [
        {"distill.logits": training}, {"recover.lora": training | lora},
        {"quantize.rtn": {"bits": 8, "group_size": "channel"}}, {"recover.scales": training},
    ]  # fmt: skip
    text = RECIPE[: RECIPE.index("steps:")] + f"steps: {json.dumps(steps)}\n"
    (folder / "own.yaml").write_text(text)
    assert run("apply", "own.yaml", "--trust-remote-code", "--progress", "none")[0] == 0


@pytest.mark.nightly
def test_a_known_type_is_run_by_transformers_alone(run: Run, folder: Path, model: Path) -> None:
    describe(model, model_type="llama", architectures=["LlamaForCausalLM"])
    for flag in ((), ("--trust-remote-code",)):
        assert run("apply", "own.yaml", "--progress", "none", *flag)[0] == 0
    assert not (folder / "ran").exists()


def test_code_in_another_repository_never_runs(run: Run, folder: Path, model: Path) -> None:
    describe(model, auto_map={name: f"org/other--{value}" for name, value in AUTO_MAP.items()})
    code, _, err = run("apply", "own.yaml", "--trust-remote-code")
    assert (code, err.splitlines()[-1]) == (
        2,
        OTHER,
    )
    assert not (folder / "ran").exists()


def test_a_recipe_cannot_ask_for_it(run: Run, folder: Path, model: Path) -> None:
    (folder / "own.yaml").write_text(RECIPE.replace("source: model", "source: model, trust_remote_code: true"))
    code, _, err = run("plan", "own.yaml")
    assert (code, err.splitlines()[0]) == (2, "own.yaml:3:24: error[R205]: unknown key `trust_remote_code` of `model`")
