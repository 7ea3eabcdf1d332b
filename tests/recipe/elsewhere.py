"""Recipes that are elsewhere: git repositories and installed packs, made on the spot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from runner.errors import RecipeError
from runner.recipe.load import load

BASE = """\
version: 1
name: base
params: {bits: 4}
model: {source: "demo:tiny-llama"}
steps:
  - quantize.rtn: {bits: "${bits}", group_size: channel}
"""


def git(*arguments: str, at: Path) -> str:
    """stdout of git, without the settings of whoever runs the tests."""
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    env = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, env=env).stdout


class Upstream:
    """A bare repository, and the working folder that pushes to it."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self.bare, self.work = folder / "up.git", folder / "work"
        for path in (self.bare, self.work):
            path.mkdir(parents=True)
        git("init", "-q", "--bare", "-b", "main", at=self.bare)
        git("init", "-q", "-b", "main", at=self.work)
        git("remote", "add", "origin", str(self.bare), at=self.work)
        self.commit(files, "v1")

    @property
    def url(self) -> str:
        return f"git+file://{self.bare}"

    def commit(self, files: Mapping[str, str], tag: str | None = None) -> str:
        """Commit files, push them and the tag; the commit."""
        for name, content in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        git("add", "-A", at=self.work)
        git("commit", "-q", "--allow-empty", "-m", "x", at=self.work)
        if tag is not None:
            git("tag", "-f", "-a", "-m", tag, tag, at=self.work)
        git("push", "-q", "-f", "--tags", "origin", "main", at=self.work)
        return git("rev-parse", "HEAD", at=self.work).strip()


def install_pack(site: Path, name: str, recipes: Mapping[str, str], version: str = "1.0") -> Path:
    """An installed package that brings a pack, as pip leaves it in `site`; the pack's folder."""
    folder = site / f"{name}_recipes"
    for file, content in recipes.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    for old in site.glob(f"{name}_recipes-*.dist-info/*"):
        old.unlink()
    for old in site.glob(f"{name}_recipes-*.dist-info"):
        old.rmdir()
    info = site / f"{name}_recipes-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-recipes\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[runner.recipes]\n{name} = {name}_recipes\n")
    return folder


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return name


def complaint_of(name: str) -> str:
    """The whole rendered complaint about a recipe."""
    with pytest.raises(RecipeError) as caught:
        load(name)
    return caught.value.render()
