from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.cli import main

KINDS = Path(__file__).parent / "kinds"
RECIPE = """\
version: 1
name: toy
description: A toy.
params: {points: 5, fail: false}
model: {source: demo:tiny-llama}
steps:
  - toy.score: {points: 4}
    id: before
  - toy.shrink: {fail: "${fail}"}
    id: shrink
  - toy.score:
      points: "${points}"
      gates: {points: {max_ratio_to: before, value: 1.5}}
    id: after
"""
LOAD = (
    "load    from transformers import AutoModelForCausalLM; "
    "model = AutoModelForCausalLM.from_pretrained('FOLDER/jobs/toy-ID/output', dtype=\"auto\")"
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with toy.yaml, whose kinds compute nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(KINDS))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("RUNNER_JOBS", raising=False)
    monkeypatch.delenv("RUNNER_DEBUG", raising=False)
    (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def _applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jobs folder in which toy.yaml was applied."""
    folder = tmp_path_factory.mktemp("applied")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setenv("RUNNER_STEPS_PATH", str(KINDS))
        (folder / "toy.yaml").write_text(RECIPE, encoding="utf-8")
        assert main(["apply", "toy.yaml", "--jobs", "jobs"]) == 0
    return folder / "jobs"


@pytest.fixture
def job(_applied: Path, folder: Path) -> str:
    """The id of a job that is done, of toy.yaml, in the working folder."""
    shutil.copytree(_applied, folder / "jobs")
    return next(path.name for path in (folder / "jobs").glob("toy-*"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def steady(text: str) -> str:
    """A text without what differs from run to run: ids, times, sizes of this process, folders, versions."""
    text = re.sub(r"\btoy-[0-9a-f]{12}\b", "toy-ID", text)
    text = re.sub(r"\b\d+:\d\d\]", "TIME]", text)
    text = re.sub(r"on the CPU \(\d+ cores?\)", "on the CPU (N cores)", text)
    text = re.sub(r"of [\d.]+ GB available", "of ALL available", text)
    text = re.sub(r"\b[0-9a-f]{64}\b", "KEY", text)
    text = re.sub(r" +\d+\.\d s\b", " SECS", text)
    text = re.sub(r"peak memory [\d.]+ [kMG]B", "peak memory SIZE", text)
    return re.sub(r"/\S*/test_\w*\d+", "FOLDER", text)
