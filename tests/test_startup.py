"""Start-up: what asks, plans and shows never imports what computes, and answers at once."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import KINDS, RECIPE

HEAVY = ("torch", "transformers", "safetensors.torch", "compressed_tensors", "datasets", "accelerate")
CODE = """
import io, json, sys
from contextlib import redirect_stdout
from runner.cli import main
with redirect_stdout(io.StringIO()):
    code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def modules(folder: Path, *arguments: str) -> set[str]:
    """The modules in a process that ran the command, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "RUNNER_STEPS_PATH": str(KINDS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, found = json.loads(done.stdout)
    assert code == 0
    return set(found)


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["apply", "--help"], ["steps"], ["steps", "quantize.gptq"], ["schema"], ["jobs"],
    ["validate", "toy.yaml"], ["plan", "toy.yaml"],
    ["show", "toy.yaml"], ["lock", "toy.yaml"], ["pack", "."], ["new", "demo:tiny-llama", "-o", "-"],
], ids=" ".join)  # fmt: skip
def test_heavy_packages_stay_out(folder: Path, arguments: list[str]) -> None:
    assert modules(folder, *arguments) & set(HEAVY) == set()


def test_a_cached_apply_and_its_report_need_no_torch(folder: Path) -> None:
    modules(folder, "apply", "toy.yaml")
    assert modules(folder, "apply", "toy.yaml") & set(HEAVY) == set()
    assert modules(folder, "report", "toy-") & set(HEAVY) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["apply", "--help"]], ids=" ".join)
def test_help_imports_next_to_nothing(folder: Path, arguments: list[str]) -> None:
    found = modules(folder, *arguments)
    assert found & {"rich", "yaml", "jsonschema", "numpy", "tokenizers", "huggingface_hub"} == set()
    ours = {name for name in found if name.startswith("runner.")}
    names = ("cli", "errors", "plan", "search", "commands", "commands.apply", "commands.options")
    assert ours <= {f"runner.{name}" for name in names}


def test_help_answers_within_250_ms(folder: Path) -> None:
    """Of the processor's time: the clock's depends on what else the machine does."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "runner", "--help"], cwd=folder, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(once() for _ in range(7)) < 0.25
