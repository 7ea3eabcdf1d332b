"""The nightly pipelines, run as they stand in .github and docs, on recipes that compute nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands.conftest import KINDS, RECIPE

ROOT = Path(__file__).parent.parent.parent
Commands = list[str]


def steps(job: str) -> Commands:
    """The commands of a job of the nightly workflow, without the installation that they begin with."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for step in workflow["jobs"][job]["steps"] if "run" in step]
    assert commands[0].startswith("pip install -c constraints.txt")
    return commands[1:]


def github() -> Commands:
    return steps("nightly")


def test_tests_that_an_ordinary_run_deselects_run_at_night() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert options["addopts"][-2:] == ["-m", "not nightly"]
    assert steps("tests")[0] == "pytest -m nightly --durations=20"


def test_tests_that_need_a_package_which_ci_lacks_run_at_night() -> None:
    """In files that are there: pytest would end with an error, and only at night."""
    named = {word for command in steps("tests") for word in command.split() if word.startswith("tests/")}
    assert {"tests/execute/test_ray.py", "tests/execute/test_slurm.py", "tests/plan/test_environments.py"} < named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def gitlab() -> Commands:
    text = (ROOT / "docs" / "nightly.md").read_text(encoding="utf-8")
    block = re.search(r"^```yaml\n# .gitlab-ci.yml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    job: dict[str, Any] = yaml.safe_load(block.group(1))["nightly"]
    return [*job["script"], "\n".join(job["after_script"])]


def test_no_folder_of_tests_is_left_out(request: pytest.FixtureRequest) -> None:
    """pytest skips folders by their names, without a word."""
    skipped = request.config.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    names = {name for folder in folders for name in folder.relative_to(ROOT).parts}
    assert "build" in names
    assert [name for name in sorted(names) if any(fnmatch(name, pattern) for pattern in skipped)] == []


@pytest.mark.parametrize("pipeline", [github, gitlab])
@pytest.mark.nightly
def test_a_night(pipeline: Any, tmp_path: Path) -> None:
    """One recipe is done, one misses its gate: reports of both, the model of one, a store that the next night uses."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "runner"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m runner "$@"\n')
    script.chmod(0o755)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "good.yaml").write_text(RECIPE.replace("name: toy", "name: good"))
    missed = RECIPE.replace("name: toy", "name: missed").replace("points: 5", "points: 9")
    (tmp_path / "recipes" / "missed.yaml").write_text(missed)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RUNNER_STEPS_PATH": str(KINDS), "RECIPES": "recipes", "RUNNER_JOBS": str(tmp_path / "jobs"),
    }  # fmt: skip
    for night in range(2):
        for command in pipeline():
            done = subprocess.run(
                ["bash", "-e", "-c", command],
                cwd=tmp_path,
                env=environment,
                text=True,
                capture_output=True,
                check=False,
            )
            applies = "runner apply" in command
            assert done.returncode == (3 if applies else 0), f"{command}\n{done.stdout}\n{done.stderr}"
            if applies:
                assert "\n1 of 2 jobs done in " in done.stdout
                assert (done.stdout.count("nothing to run: all 3 steps are cached") == 2) == (night == 1)
    (pointer,) = (tmp_path / "accepted").glob("*.json")
    good = json.loads(pointer.read_text())["job"]
    assert sorted(p.name for p in (tmp_path / "accepted" / good).iterdir()) == ["output", "provenance.json"]
    assert not (tmp_path / "accepted" / good / "output" / "model.safetensors").is_symlink()
    assert sorted(p.name for p in tmp_path.rglob("junit.xml")) == ["junit.xml"]
    if pipeline is github:
        reports = {p.parent.name.split("-")[0] for p in (tmp_path / "reports").glob("*/provenance.json")}
        assert reports == {"good", "missed"}
