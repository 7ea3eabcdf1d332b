"""README shows only commands that CI runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import runner

ROOT = Path(__file__).parent.parent.parent


def test_ci_runs_every_command_of_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = re.findall(r"^<!-- ci: (\w+) -->\n```sh\n", text, re.MULTILINE)
    assert marked == ["apply", "look", "test"]
    assert len(re.findall(r"^```sh$", text, re.MULTILINE)) == len(marked)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^readme (\w+)$", script, re.MULTILINE) == marked


def test_two_commands_do_everything() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install -c constraints.txt '.[onnx,tensorrt]' && runner apply recipes/llama_int4.yaml\n" in text
    assert "pip install -c constraints.txt -e '.[dev]' && pytest -n auto --dist loadfile\n" in text


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == runner.__version__


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    # gptqmodel, which brings its own torch, aside
    ours = (entry for extra in sorted(set(extras) - {"gptq"}) for entry in extras[extra])
    wanted = {name(entry) for entry in [*project["dependencies"], *ours]} - {"runner"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name(line) for line in lines if "==" in line and not line.startswith("#")}
    assert wanted <= pinned


def name(requirement: str) -> str:
    """The normalized name in a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match.group()).lower()
