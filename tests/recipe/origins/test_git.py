"""Parents in git repositories: bare ones in a folder, over file://."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from runner.recipe.load import load
from runner.recipe.origins import git
from runner.recipe.origins.locate import Pins
from tests.recipe import elsewhere
from tests.recipe.elsewhere import BASE, Upstream, complaint_of, write

FILES = {
    "r/base.yaml": BASE,
    "r/middle.yaml": "extends: base.yaml\nparams: {bits: 3}\n",
    "r/out.yaml": "extends: ../../x.yaml\n",
    "r/absolute.yaml": "extends: /etc/hostname\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git.current.cache_clear()
    return tmp_path


@pytest.fixture
def upstream(folder: Path) -> Upstream:
    return Upstream(folder / "upstream", FILES)


def child(address: str) -> str:
    return write("child.yaml", f"extends: {address}\n")


def refused(address: str, code: str, message: str, help: str | None) -> None:
    """The complaint, at the address in child.yaml; the excerpt of a long line is cut."""
    lines = complaint_of(child(address)).splitlines()
    assert lines[0] == f"child.yaml:1:10: error[{code}]: {message}"
    assert lines[3:] == ([f"help: {help}"] if help else [])


def test_a_recipe_at_a_tag_and_what_it_extends(upstream: Upstream) -> None:
    head = upstream.commit({})
    recipe = load(child(f"{upstream.url}@v1#r/middle.yaml"))
    assert (recipe.name, recipe.params) == ("base", {"bits": 3})
    middle, base = recipe.parents
    assert [parent.name for parent in recipe.parents] == [
        f"{upstream.url}@v1#r/middle.yaml", f"{upstream.url}@v1#r/base.yaml",
    ]  # fmt: skip
    assert middle.commit == base.commit != head
    assert recipe.step_span(recipe.steps[0], ("bits",)).file == base.name  # type: ignore[union-attr]


def test_a_commit_a_branch_and_a_moved_tag(upstream: Upstream) -> None:
    second = upstream.commit({"r/base.yaml": BASE.replace("bits: 4", "bits: 8")})
    assert load(child(f"{upstream.url}@{second}#r/base.yaml")).params == {"bits": 8}
    assert load(child(f"{upstream.url}@main#r/base.yaml")).params == {"bits": 8}
    assert load(child(f"{upstream.url}@v1#r/base.yaml")).params == {"bits": 4}
    upstream.commit({}, tag="v1")
    assert load(child(f"{upstream.url}@v1#r/base.yaml")).params == {"bits": 8}


def test_a_pin_holds_a_tag_that_moved_and_needs_no_repository(upstream: Upstream) -> None:
    address = f"{upstream.url}@v1#r/base.yaml"
    (parent,) = load(child(address)).parents
    assert parent.commit is not None
    pins = Pins({address: parent.commit}, {address: parent.digest})
    moved = upstream.commit({"r/base.yaml": BASE.replace("bits: 4", "bits: 8")}, tag="v1")
    assert load(child(address), pins=pins).params == {"bits": 4}
    assert git.is_moving(parent)
    assert git.current(parent) == moved
    shutil.rmtree(upstream.bare)
    assert load(child(address), pins=pins).params == {"bits": 4}


def test_only_the_one_commit_is_fetched_and_nothing_is_checked_out(upstream: Upstream, folder: Path) -> None:
    second = upstream.commit({"other": "x"})
    load(child(f"{upstream.url}@main#r/base.yaml"))
    (kept,) = (folder / "cache" / "runner" / "git").glob("*/*.git")
    assert kept.name == f"{second}.git"
    assert elsewhere.git("rev-list", "--count", "--all", second, at=kept).strip() == "1"
    assert not list(kept.rglob("*.yaml"))
    assert not [path for path in kept.parent.iterdir() if path.name.startswith(".new-")]


def test_refs_and_files_that_are_not_there(upstream: Upstream) -> None:
    place = f"file://{upstream.bare}"
    wanted = "name a tag, a branch, or a commit with all its 40 digits"
    refused(f"{upstream.url}@v2#r/base.yaml", "R124", f"the repository {place} has no ref `v2`", wanted)
    none = "0" * 40
    refused(f"{upstream.url}@{none}#r/base.yaml", "R124", f"the repository {place} has no commit {none}", None)
    known = "it has `r/absolute.yaml`, `r/base.yaml`, `r/middle.yaml`, `r/out.yaml`"
    refused(f"{upstream.url}@v1#r/bas.yaml", "R124", "the repository has no file `r/bas.yaml` at v1", known)
    refused(f"{upstream.url}@v1#r", "R124", "`r` of the repository is a folder, not a recipe file", known)


def test_a_repository_that_is_not_there(folder: Path) -> None:
    refused(
        f"git+file://{folder}/none@v1#a.yaml", "R124",
        f"git cannot fetch file://{folder}/none at v1: '{folder}/none' does not appear to be a git repository",
        "check the URL, the network and your access: the same `git ls-remote` must work",
    )  # fmt: skip


def test_the_whole_of_a_complaint() -> None:
    assert complaint_of(child("git+ftp://h/r@v1#a")) == (
        "child.yaml:1:10: error[R122]: `git+ftp` is not a way to a repository\n"
        "    1 | extends: git+ftp://h/r@v1#a\n"
        "      |          ^^^^^^^^^^^^^^^^^^\n"
        "help: write git+https://HOST/REPOSITORY@COMMIT-OR-TAG#path/to/recipe.yaml, or with `ssh`"
    )
    assert complaint_of(child("git+https://example.com/r@v1#a.yaml")) == (
        "child.yaml:1:10: error[R124]: https://example.com/r at v1 is not in the cache, and the network is forbidden, "
        "by `--offline` or HF_HUB_OFFLINE\n"
        "    1 | extends: git+https://example.com/r@v1#a.yaml\n"
        "      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "help: a commit, or a lock, needs no network once it was fetched"
    )


def test_a_repository_cannot_reach_out(upstream: Upstream, folder: Path) -> None:
    (upstream.work / "r" / "link.yaml").symlink_to("/etc/hostname")
    upstream.commit({}, tag="v2")
    help = "help: a recipe from elsewhere extends only what came with it, or names it by URL"
    for name, path in (("out", "../../x.yaml"), ("absolute", "/etc/hostname")):
        assert complaint_of(child(f"{upstream.url}@v2#r/{name}.yaml")) == (
            f"{upstream.url}@v2#r/{name}.yaml:1:10: error[R126]: `{path}` leads out of the repository\n"
            f"    1 | extends: {path}\n      |          {'^' * len(path)}\n{help}"
        )
    refused(f"{upstream.url}@v2#../x.yaml", "R126", "`../x.yaml` leads out of the repository", help[6:])
    assert "`r/link.yaml` of the repository is a link, not a recipe file" in complaint_of(
        child(f"{upstream.url}@v2#r/link.yaml")
    )


@pytest.mark.parametrize(
    ("address", "message", "help"),
    [
        ("git+https://h/r#a.yaml", "`git+https://h/r#a.yaml` lacks a commit or tag after `@`", f"write {git.FORM}"),
        ("git+ssh://git@h/r#a.yaml", "`git+ssh://git@h/r#a.yaml` lacks a commit or tag after `@`", f"write {git.FORM}"),
        ("git+https://h/r@v1", "`git+https://h/r@v1` lacks a path of a recipe after `#`", f"write {git.FORM}"),
        ("git+ftp://h/r@v1#a", "`git+ftp` is not a way to a repository", f"write {git.FORM}, or with `ssh`"),
        (
            "git+https://u:secret@h/r@v1#a.yaml",
            "the URL holds a password, which complaints and locks would show",
            "leave it out; git asks its credential helper",
        ),
        *(
            (address, f"`{address}` names no repository and ref that git could fetch", f"write {git.FORM}")
            for address in (
                "git+ssh://-oProxyCommand=x/r@v1#a",
                "git+ssh://u@-oProxyCommand=x/r@v1#a",
                "git+https://h/r@--upload-pack=x#a",
                "git+https://h/r@a..b#a",
                "git+https://h/r@a:b#a",
            )
        ),
    ],
)
def test_addresses_that_are_none(address: str, message: str, help: str) -> None:
    refused(address, "R122", message, help)


def test_a_repository_that_does_not_hand_out_commits(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old protocol refuses a commit that no ref names; all refs are fetched then."""
    first = elsewhere.git("rev-parse", "v1^{commit}", at=upstream.work).strip()
    upstream.commit({"r/base.yaml": BASE.replace("bits: 4", "bits: 8")}, tag="v1")
    config = Path("gitconfig")
    config.write_text("[protocol]\n\tversion = 0\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config.resolve()))
    assert load(child(f"{upstream.url}@{first}#r/base.yaml")).params == {"bits": 4}


def test_git_that_is_not_installed(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    refused(
        f"{upstream.url}@v1#r/base.yaml", "R124", "the program git is not installed",
        "install git, or extend another place",
    )  # fmt: skip
