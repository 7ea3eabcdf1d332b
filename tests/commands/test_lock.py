"""`runner lock`, and `--locked`: the same elsewhere, and every kind of drift named."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.plan import lock_file, machine, resolve
from runner.recipe.origins import git
from tests import tiny
from tests.commands.conftest import Run
from tests.recipe.elsewhere import BASE, Upstream, install_pack

CHILD = """\
version: 1
name: ours
extends: "{git}@v1#r/middle.yaml"
params: {{bits: 8}}
model: {{source: model}}
data: {{text: {{source: text.txt, sequence_length: 8}}}}
"""
MIDDLE = "extends: pack:acme/base\nsteps:\n  - evaluate.perplexity: {data: text}\n    before: rtn\n"


class Team:
    """A folder with a recipe that extends one in git, which extends a pack; a model and a text of its own."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.upstream = Upstream(folder / "upstream", {"r/middle.yaml": MIDDLE})
        self.site = folder / "site"
        self.pack("4", "1.0")
        self.here = folder / "here"
        shutil.copytree(template, self.here / "model")
        (self.here / "text.txt").write_text("a b c d e f g h i j k l m n o p " * 8, encoding="utf-8")
        (self.here / "ours.yaml").write_text(CHILD.format(git=self.upstream.url), encoding="utf-8")

    def pack(self, bits: str, version: str) -> None:
        text = BASE.replace("bits: 4", f"bits: {bits}").replace("name: base", "name: base\ndata: {}")
        install_pack(self.site, "acme", {"base.yaml": text}, version)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of letters."""
    return tiny.letters(tiny.save(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture
def team(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.delenv("RUNNER_STEPS_PATH", raising=False)
    git.current.cache_clear()
    team = Team(tmp_path / "team", template)
    monkeypatch.syspath_prepend(str(team.site))
    monkeypatch.chdir(team.here)
    return team


def lock_of(team: Team) -> Any:
    return yaml.safe_load((team.here / "ours.lock").read_text(encoding="utf-8"))


def job(folder: Path) -> Path:
    (path,) = (folder / "jobs").glob("ours-*")
    return path


def digests(folder: Path) -> dict[str, str]:
    """Step folder → digest, of the one job."""
    return {
        path.parent.name: json.loads(path.read_text())["digest"]
        for path in sorted(job(folder).glob("steps/*/record.json"))
    }


@pytest.mark.nightly
def test_locked_and_copied_it_gives_the_same(
    team: Team, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, out, _ = run("lock", "ours.yaml")
    assert (code, out.splitlines()[0]) == (
        0, f"wrote ours.lock: 1 model, 1 data entry, 2 parents, {len(lock_of(team)['packages'])} packages"
    )  # fmt: skip
    lock = lock_of(team)
    assert list(lock["parents"]) == [f"{team.upstream.url}@v1#r/middle.yaml", "pack:acme/base"]
    assert lock["models"]["model"]["files"].keys() >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert lock["packages"]["torch"] == metadata.version("torch")
    assert run("apply", "ours.yaml", "--locked", "--progress", "none")[0] == 0
    first = digests(team.here)

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(team.here, elsewhere, ignore=shutil.ignore_patterns("jobs"))
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.chdir(elsewhere)
    assert run("apply", "ours.yaml", "--locked", "--progress", "none")[0] == 0
    assert job(elsewhere).name == job(team.here).name
    plans = [json.loads((job(folder) / "plan.json").read_text()) for folder in (team.here, elsewhere)]
    assert plans[0]["key"] == plans[1]["key"]
    assert digests(elsewhere) == first
    assert len(first) == 2
    locks = [(job(folder) / "recipe.lock").read_bytes() for folder in (team.here, elsewhere)]
    assert locks[0] == locks[1]

    # From the job directory alone: no parents, the lock beside it, the same plan, nothing to compute.
    team.pack("3", "2.0")
    shutil.rmtree(team.upstream.bare)
    monkeypatch.chdir(elsewhere)
    shutil.move(job(elsewhere), tmp_path / "moved")
    (elsewhere / "ours.yaml").unlink()
    code, out, _ = run("plan", str(tmp_path / "moved" / "recipe.yaml"), "--locked", "--json")
    assert (code, json.loads(out)["key"]) == (0, plans[0]["key"])
    assert {step["state"] for step in json.loads(out)["steps"]} == {"cached"}


def drifted(team: Team, run: Run, line: str, name: str) -> None:
    """That plan and apply say it, and refuse it with --locked."""
    path = "ours.lock"
    help = f"help: `runner lock ours.yaml --upgrade` takes what is there now, `--upgrade NAME` one of `{name}`\n"
    for command in ("plan", "apply"):
        assert run(command, "ours.yaml", "--locked") == (
            2,
            "",
            f"error: 1 thing drifted from {path}:\n  {line}\n{help}",
        )
    code, out, _ = run("plan", "ours.yaml")
    assert code == 0
    assert f"note: drifted from {path}: {line}" in out.splitlines()
    code, out, _ = run("validate", "ours.yaml")
    assert (code, out.splitlines()[-1]) == (0, f"warning[R451]: drifted from {path}: {line}")
    assert run("validate", "ours.yaml", "--locked")[0] == 2


def test_a_model_file_that_changed(team: Team, run: Run) -> None:
    run("lock", "ours.yaml")
    old = lock_of(team)["models"]["model"]["files"]["config.json"][:12]
    config = team.here / "model" / "config.json"
    config.write_text(config.read_text().replace('"bos_token_id"', ' "bos_token_id"'))
    run("lock", "ours.yaml", "--upgrade", "nothing")
    new = machine_sha(config)[:12]
    drifted(team, run, f"model model: config.json {old} → {new}", "model")
    code, out, _ = run("lock", "ours.yaml")
    assert (code, out) == (
        0,
        (
            "ours.lock is up to date\n"
            "still pinned, though they drifted; `runner lock ours.yaml --upgrade NAME` takes what is there now:\n"
            f"  model model: config.json {old} → {new}\n"
        ),
    )
    code, out, _ = run("lock", "ours.yaml", "--upgrade", "model")
    assert (code, out.splitlines()[1:]) == (0, [f"  model model: config.json {old} → {new}"])
    assert run("plan", "ours.yaml", "--locked")[0] == 0


def test_data_that_changed(team: Team, run: Run) -> None:
    run("lock", "ours.yaml")
    old = lock_of(team)["data"]["text.txt"]["digest"]
    with open(team.here / "text.txt", "a", encoding="utf-8") as file:
        file.write("q")
    run("lock", "--upgrade", "text", "ours.yaml")
    new = lock_of(team)["data"]["text.txt"]["digest"]
    assert new != old
    (team.here / "ours.lock").write_text((team.here / "ours.lock").read_text().replace(new, old))
    drifted(team, run, f"data text.txt: digest {old[:12]} → {new[:12]}", "text.txt")


def test_a_tag_that_moved(team: Team, run: Run) -> None:
    run("lock", "ours.yaml")
    name = f"{team.upstream.url}@v1#r/middle.yaml"
    old = lock_of(team)["parents"][name]["commit"]
    new = team.upstream.commit({"r/middle.yaml": MIDDLE + "    when: false\n"}, tag="v1")
    drifted(team, run, f"parent {name}: locked at commit {old[:12]}, now {new[:12]} there", name)
    code, out, _ = run("plan", "ours.yaml", "--json")
    assert [step["id"] for step in json.loads(out)["steps"]] == ["perplexity", "rtn"], "the pinned commit is used"
    code, out, _ = run("lock", "ours.yaml", "--upgrade", "middle")
    assert code == 0
    assert lock_of(team)["parents"][name]["commit"] == new
    code, out, _ = run("plan", "ours.yaml", "--json", "--locked")
    assert [step["id"] for step in json.loads(out)["steps"]] == ["rtn"]


def test_a_pack_that_was_upgraded(team: Team, run: Run) -> None:
    run("lock", "ours.yaml")
    old = lock_of(team)["parents"]["pack:acme/base"]["digest"]
    team.pack("3", "1.1")
    new = machine_sha(team.site / "acme_recipes" / "base.yaml")
    line = f"parent pack:acme/base: acme-recipes 1.0 → acme-recipes 1.1, digest {old[:12]} → {new[:12]}"
    drifted(team, run, line, "pack:acme/base")


def test_a_package_that_was_upgraded(team: Team, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("lock", "ours.yaml")
    real = machine.package_version
    for module in (lock_file, resolve, machine):
        monkeypatch.setattr(module, "package_version", lambda name: "99.0" if name == "torch" else real(name))
    drifted(team, run, f"package torch: {real('torch')} → 99.0", "torch")


def test_a_seed_and_a_version_of_runner(team: Team, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import runner

    run("lock", "ours.yaml")
    (team.here / "ours.yaml").write_text(CHILD.format(git=team.upstream.url) + "seed: 7\n")
    drifted(team, run, "seed: 0 → 7", "seed")
    run("lock", "ours.yaml", "--upgrade", "seed")
    monkeypatch.setattr(runner, "__version__", "9.9.9")
    drifted(team, run, "runner: 0.1.0 → 9.9.9", "runner")


def test_locking_again_changes_nothing_and_a_name_that_is_none(team: Team, run: Run) -> None:
    run("lock", "ours.yaml")
    before = (team.here / "ours.lock").read_bytes()
    assert run("lock", "ours.yaml") == (0, "ours.lock is up to date\n", "")
    assert run("lock", "--upgrade", "ours.yaml") == (0, "ours.lock is up to date\n", "")
    assert (team.here / "ours.lock").read_bytes() == before
    code, _, err = run("lock", "ours.yaml", "--upgrade", "trch")
    assert (code, err.splitlines()[0]) == (2, "error: the lock has no `trch`; did you mean `torch`?")
    assert run("lock")[2] == "error: `runner lock` needs a RECIPE\nhelp: `runner lock --help` shows how to use it\n"


def test_no_lock_to_hold_to(run: Run) -> None:
    for command in ("plan", "apply"):
        assert run(command, "toy.yaml", "--locked") == (
            2, "", "error: toy.yaml has no lock: toy.lock is not there\nhelp: `runner lock toy.yaml` writes it\n"
        )  # fmt: skip


def test_the_shared_name_is_taken_for_the_only_recipe(run: Run, folder: Path) -> None:
    run("lock", "toy.yaml")
    (folder / "toy.lock").rename(folder / "recipe.lock")
    assert run("plan", "toy.yaml", "--locked")[0] == 0
    assert run("lock", "toy.yaml")[1] == "recipe.lock is up to date\n"
    shutil.copy(folder / "toy.yaml", folder / "other.yaml")
    assert run("plan", "toy.yaml", "--locked")[0] == 2


def test_a_lock_that_is_none(run: Run, folder: Path) -> None:
    run("lock", "toy.yaml")
    lock = folder / "toy.lock"
    lock.write_text(lock.read_text().replace("version: 1", "version: 2"))
    assert run("plan", "toy.yaml") == (
        2,
        "",
        (
            "toy.lock:2:10: error[R450]: this is no lock that runner 0.1.0 reads: 1 was expected\n"
            "    2 | version: 2\n"
            "      |          ^\n"
            "help: `runner lock RECIPE --upgrade` rewrites toy.lock\n"
        ),
    )
    code, out, err = run("lock", "toy.yaml", "--upgrade")
    assert (code, out.startswith("wrote toy.lock: ")) == (0, True)
    assert err == "this is no lock that runner 0.1.0 reads: 1 was expected; it is replaced\n"
    assert run("plan", "toy.yaml", "--locked")[0] == 0


def test_one_lock_covers_every_combination_of_a_matrix(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text()
    (folder / "toy.yaml").write_text(text + "matrix: {points: [5, 6]}\n")
    assert run("lock", "toy.yaml")[0] == 0
    assert run("plan", "toy.yaml", "--locked")[0] == 0


def machine_sha(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_recipe_of_a_pack_has_no_lock_of_its_own(run: Run) -> None:
    code, out, err = run("lock", "pack:runner/llama_int4")
    assert (code, out) == (2, "")
    assert err == (
        "error: the lock of a recipe is written next to it, and `pack:runner/llama_int4` is in an installed package\n"
        "help: lock a file of your own that has `extends: pack:runner/llama_int4`\n"
    )
