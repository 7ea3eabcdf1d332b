"""`runner generate`: text from a job's output or any folder with a model."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from tests.commands.conftest import Run

MODEL = Path(__file__).parents[2] / "runner" / "demo" / "models" / "tiny-llama"
PROMPT = "def open(path):\n"


def wanted(prompt: str, count: int) -> str:
    """What transformers itself writes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    made = model.generate(**given, max_new_tokens=count, do_sample=False)[0, given["input_ids"].shape[1] :]
    return str(tokenizer.decode(made, skip_special_tokens=True))


def test_a_folder_writes_what_transformers_writes(run: Run) -> None:
    code, out, err = run("generate", str(MODEL), PROMPT, "--max-new-tokens", "20")
    assert (code, err) == (0, "")
    assert out.rstrip("\n") == wanted(PROMPT, 20).rstrip("\n")


def test_a_job_by_its_id_and_a_prompt_from_stdin(run: Run, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy job's output is a copy of the model without its tokenizer, which is put there."""
    output = Path("jobs") / job / "output"
    shutil.rmtree(output)
    shutil.copytree(MODEL, output)
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    by_id = run("generate", job[:9], "-", "--max-new-tokens", "8")
    by_folder = run("generate", str(Path("jobs") / job), PROMPT, "--max-new-tokens", "8")
    assert by_id == by_folder
    assert by_id[0] == 0


def test_a_seed_draws_the_same_text_again(run: Run) -> None:
    draw = ("generate", str(MODEL), PROMPT, "--max-new-tokens", "12", "--temperature", "1.5", "--top-p", "0.95")
    first, again, other = (run(*draw, "--seed", seed)[1] for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_a_job_without_output(run: Run, job: str) -> None:
    shutil.rmtree(Path("jobs") / job / "output")
    for folder in (Path("jobs") / job / "steps").glob("*/out"):
        shutil.rmtree(folder)
    code, out, err = run("generate", job, PROMPT)
    assert (code, out) == (2, "")
    assert err == (
        f"error: job `{job}` has no output: no step of it has made a checkpoint or an engine yet\n"
        "help: apply its recipe to the end, or name the folder of one of its steps\n"
    )


def test_a_job_that_has_not_ended(run: Run, job: str) -> None:
    """What its last finished step made, which is said."""
    shutil.rmtree(Path("jobs") / job / "output")
    [made] = (Path("jobs") / job / "steps").glob("*-shrink")
    shutil.rmtree(made / "out")
    shutil.copytree(MODEL, made / "out")
    code, out, err = run("generate", job, PROMPT, "--max-new-tokens", "8")
    assert (code, err) == (0, f"note: job `{job}` has no output yet; this is what step `shrink` made\n")
    assert out.rstrip("\n") == wanted(PROMPT, 8).rstrip("\n")


def test_the_latest_of_several_jobs(run: Run, job: str) -> None:
    first, later = Path("jobs") / job, Path("jobs") / f"{job[:-2]}zz"
    shutil.copytree(first, later, symlinks=True)
    state = json.loads((later / "job.json").read_text())
    (later / "job.json").unlink()
    (later / "job.json").write_text(json.dumps(state | {"started": "2999-01-01T00:00:00Z"}))
    shutil.rmtree(later / "output")
    shutil.copytree(MODEL, later / "output")
    code, _, err = run("generate", job[:-3], PROMPT, "--max-new-tokens", "4")
    assert (code, err) == (0, f"note: 2 jobs begin with `{job[:-3]}`; this is `{later.name}`, the latest\n")


@pytest.fixture
def chain(job: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job whose output is an engine that cannot run here, made of a checkpoint that can."""
    from runner.runtime import open

    formats = {**open.FORMATS, "tensorrt": open.Format("runner.runtime.tensorrt", ("no_such_package",), "tensorrt")}
    monkeypatch.setattr(open, "FORMATS", formats)
    here = Path("jobs") / job
    for folder in (here / "output", *here.glob("steps/*")):
        shutil.rmtree(folder)
    for folder in (here / "output", here / "steps" / "03-engine" / "out"):
        folder.mkdir(parents=True)
        (folder / "engine.json").write_text('{"format": "tensorrt"}')
        for file in MODEL.glob("token*"):
            shutil.copy(file, folder)
    shutil.copytree(MODEL, here / "steps" / "02-small" / "out")
    return job


@pytest.mark.parametrize("named", ["the job", "its output"])
def test_an_engine_that_cannot_run_here_gives_way_to_what_it_was_made_of(run: Run, chain: str, named: str) -> None:
    job = chain if named == "the job" else str(Path("jobs") / chain / "output")
    code, out, err = run("generate", job, PROMPT, "--max-new-tokens", "8")
    assert (code, err) == (0, (
        "note: an engine of the format tensorrt needs the package no_such_package, which is not installed; "
        "this is what step `small` made\n"
    ))  # fmt: skip
    assert out == run("generate", str(MODEL), PROMPT, "--max-new-tokens", "8")[1]


def test_a_step_of_a_job(run: Run, chain: str) -> None:
    code, out, err = run("generate", chain, PROMPT, "--step", "small", "--max-new-tokens", "8")
    assert (code, err) == (0, "")
    assert out == run("generate", str(MODEL), PROMPT, "--max-new-tokens", "8")[1]
    code, out, err = run("generate", chain, PROMPT, "--step", "engine")
    assert (code, out) == (4, "")
    assert err == (
        "error: an engine of the format tensorrt needs the package no_such_package, which is not installed\n"
        "help: `pip install 'runner[tensorrt]'`\n"
    )


def test_a_step_that_made_nothing_to_run(run: Run, chain: str) -> None:
    code, _, err = run("generate", chain, PROMPT, "--step", "quality")
    assert (code, err) == (2, (
        f"error: no step `quality` of job `{chain}` has made a checkpoint or an engine\n"
        "help: steps that have: `small`, `engine`\n"
    ))  # fmt: skip
    code, _, err = run("generate", str(MODEL), PROMPT, "--step", "small")
    assert (code, err) == (2, (
        f"error: `--step` needs a job; `{MODEL}` is a folder\nhelp: name the step's folder, or the job\n"
    ))  # fmt: skip


def test_no_job_and_no_model(run: Run, folder: Path) -> None:
    code, _, err = run("generate", "nosuch", PROMPT)
    assert (code, err) == (
        2, "error: there is no job `nosuch` in jobs\nhelp: `runner jobs list` shows them all\n"
    )  # fmt: skip
    (folder / "empty").mkdir()
    code, _, err = run("generate", "empty", PROMPT)
    assert (code, err) == (2, (
        "error: `empty` holds neither an engine (engine.json) nor a checkpoint (config.json)\n"
        "help: name a job, or a folder that one of its steps wrote\n"
    ))  # fmt: skip


def test_no_tokenizer_is_told_before_the_model_is_loaded(run: Run, folder: Path) -> None:
    (folder / "bare").mkdir()
    shutil.copy(MODEL / "config.json", folder / "bare")
    code, out, err = run("generate", "bare", PROMPT)
    assert (code, out) == (1, "")
    assert err.startswith("error: `bare` has no tokenizer.json, and transformers finds no other tokenizer there: ")
    assert err.endswith("help: download the tokenizer into that folder\n")


def test_no_chat_template(run: Run) -> None:
    code, _, err = run("generate", str(MODEL), "hi", "--chat")
    assert (code, err) == (1, (
        f"error: the tokenizer in `{MODEL}` has no chat template\n"
        "help: leave `--chat` out: the prompt is then the beginning of a text\n"
    ))  # fmt: skip


def test_a_prompt_longer_than_the_context(run: Run) -> None:
    code, _, err = run("generate", str(MODEL), "x = 1\n" * 2000)
    assert code == 1
    assert "tokens; prompt and continuation may have 2,048 together" in err


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--max-new-tokens", "0", "must be a whole number of at least 1; got '0'"),
    ("--temperature", "-1", "must be a number of at least 0; got '-1'"),
    ("--temperature", "warm", "must be a number of at least 0; got 'warm'"),
    ("--top-p", "0", "must be above 0 and at most 1; got '0'"),
    ("--top-p", "1.5", "must be above 0 and at most 1; got '1.5'"),
], ids=["tokens", "negative", "word", "nothing", "more than all"])  # fmt: skip
def test_options_that_make_no_sense(run: Run, option: str, value: str, message: str) -> None:
    code, _, err = run("generate", "job", "prompt", f"{option}={value}")
    assert code == 2
    assert f"argument {option}: {message}" in err
