"""`runner env`, and the lock of environments, with a package from a folder of wheels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import Run
from tests.plan.test_environments import wheel

RECIPE = """\
version: 1
name: foreign
model: {source: demo:tiny-llama}
data:
  text: {source: demo:stdlib, split: calibration, samples: 4, sequence_length: 32}
environments:
  peer: {requirements: ["tiny-tool>=1"], index: none, find_links: wheels}
steps:
  - foreign.llmcompressor: {data: text, group_size: 32}
    env: peer
"""


@pytest.fixture(autouse=True)
def _foreign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_ENVIRONMENTS", str(folder / "environments"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    wheel(folder / "wheels", "1.2")
    (folder / "foreign.yaml").write_text(RECIPE)


@pytest.mark.nightly
def test_environments_are_built_listed_and_removed(run: Run, folder: Path) -> None:
    assert run("env", "list") == (0, f"there are no environments in {folder}/environments\n", "")
    code, out, err = run("env", "build", "foreign.yaml")
    assert (code, err) == (0, "")
    digest = json.loads(run("env", "list", "--json")[1])[0]["digest"]
    assert out == (
        "builds the environment of tiny-tool>=1\n"
        f"foreign: `llmcompressor` has {folder}/environments/{digest}\n"
    )  # fmt: skip
    assert digest[:12] in run("env", "list")[1]
    assert run("env", "rm", "nothing") == (
        2, "", "error: there is no environment `nothing`\nhelp: `runner env list` shows them all\n"
    )  # fmt: skip
    assert run("env", "rm", digest[:8]) == (0, f"removed {digest[:12]}\n", "")
    assert json.loads(run("env", "list", "--json")[1]) == []
    assert run("env", "build") == (
        2, "", "error: `runner env build` names nothing\nhelp: name recipes to build for, or digests to remove\n"
    )  # fmt: skip


def test_an_environment_for_another_machine_is_built(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoGPTQ computes on a GPU, which the machine that prepares its environment need not have."""
    monkeypatch.setattr("runner.job.built_environments.ensure", lambda environment, say: say("builds"))
    (folder / "foreign.yaml").write_text(RECIPE.replace("llmcompressor", "autogptq"))
    code, out, err = run("env", "build", "foreign.yaml")
    assert (code, err) == (0, "")
    assert out.startswith(f"builds\nforeign: `autogptq` has {folder}/environments/")
    code, _, err = run("plan", "foreign.yaml")
    assert (code, "R504" in err) == (4, True)


def test_an_environment_that_cannot_be_resolved_is_not_built(run: Run, folder: Path) -> None:
    (folder / "foreign.yaml").write_text(RECIPE.replace("tiny-tool>=1", "tiny-tool>=9"))
    code, _, err = run("env", "build", "foreign.yaml")
    assert (code, "R712" in err) == (2, True)


def test_the_lock_pins_the_packages_with_their_hashes(run: Run, folder: Path) -> None:
    assert run("lock", "foreign.yaml")[0] == 0
    lock = (folder / "foreign.lock").read_text()
    assert "tiny-tool==1.2 --hash=sha256:" in lock
    wheel(folder / "wheels", "1.3")
    (folder / "environments" / "resolved").rename(folder / "forgotten")
    assert run("plan", "foreign.yaml", "--locked")[0] == 0, "resolved by the lock, not anew"
    (folder / "foreign.yaml").write_text(RECIPE.replace("tiny-tool>=1", "tiny-tool>=1.3"))
    code, _, err = run("plan", "foreign.yaml", "--locked")
    assert code == 2
    assert err.startswith("error: 1 thing drifted from foreign.lock:\n  environment peer: digest ")


def test_an_environment_that_does_not_resolve_is_refused_by_plan(run: Run, folder: Path) -> None:
    (folder / "foreign.yaml").write_text(RECIPE.replace("tiny-tool>=1", "tiny-tool>=9"))
    code, out, err = run("plan", "foreign.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("foreign.yaml:7:")
    assert "error[R712]: the environment does not resolve:\n    " in err
    assert err.endswith("help: change `requirements`, or name where packages come from with `index` and `find_links`\n")
