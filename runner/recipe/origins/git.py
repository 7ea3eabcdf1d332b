"""Recipes in git repositories: `git+https://HOST/PATH@REF#path/to/recipe.yaml`, fetched with the git program.

Only the one commit is fetched, into a repository of its own in the cache, from which single files are read: nothing is
checked out, so that no hook, filter, submodule or link of the repository has an effect. REF is a commit (all 40
digits), a tag or a branch; a tag or branch is resolved each time unless a lock pins the commit.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runner.recipe.origins import cache
from runner.recipe.origins.place import PlaceError, decode, inside
from runner.recipe.types import Parent

SCHEMES = ("https", "ssh", "http", "file")
FORM = "git+https://HOST/REPOSITORY@COMMIT-OR-TAG#path/to/recipe.yaml"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REF = re.compile(r"[A-Za-z0-9_](?:[\w./+-]*[\w+-])?")
_SECONDS = 300
_RECIPE_MODES = ("100644", "100755")


@dataclass(frozen=True)
class Repository:
    """A repository at a ref. `commit` is the commit of the ref, once that is known."""

    url: str
    ref: str
    commit: str

    @property
    def local(self) -> bool:
        return self.url.startswith("file:")

    @property
    def folder(self) -> Path:
        """The bare repository in the cache that holds the commit."""
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return cache.folder("git") / name / f"{self.commit}.git"


@dataclass(frozen=True)
class GitPlace:
    """A recipe in a repository."""

    repository: Repository
    path: str

    @property
    def name(self) -> str:
        return f"git+{self.repository.url}@{self.repository.ref}#{self.path}"

    @property
    def identity(self) -> str:
        return f"git+{self.repository.url}@{self.repository.commit}#{self.path}"

    @property
    def local(self) -> bool:
        return self.repository.local

    def read(self) -> str:
        folder, commit = self.repository.folder, self.repository.commit
        listed = _git("ls-tree", "-z", "--full-tree", commit, "--", self.path, at=folder).stdout
        mode, _, rest = listed.decode(errors="replace").partition(" ")
        if not listed or rest.rstrip("\0").partition("\t")[2] != self.path:
            raise PlaceError(
                "R124", f"the repository has no file `{self.path}` at {self.repository.ref}", self._known()
            )
        if mode not in _RECIPE_MODES:
            what = {"120000": "a link", "160000": "a submodule"}.get(mode, "a folder")
            raise PlaceError("R124", f"`{self.path}` of the repository is {what}, not a recipe file", self._known())
        blob = rest.split()[1]
        if int(_git("cat-file", "-s", blob, at=folder).stdout) > 2**21:
            return decode(b" " * 2**21, self.name, "R124")  # raises the error about its size
        return decode(_git("cat-file", "blob", blob, at=folder).stdout, self.name, "R124")

    def _known(self) -> str | None:
        listed = _git("ls-tree", "-r", "--name-only", self.repository.commit, at=self.repository.folder).stdout
        names = [name for name in listed.decode(errors="replace").splitlines() if name.endswith((".yaml", ".yml"))]
        shown = ", ".join(f"`{name}`" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return f"it has {shown}" if names else None

    def sibling(self, path: str) -> GitPlace:
        return GitPlace(self.repository, inside(posixpath.dirname(self.path), path, "the repository"))

    def pin(self, content: str) -> Parent:
        return Parent(self.name, hashlib.sha256(content.encode()).hexdigest(), commit=self.repository.commit)


def place(written: str, pins: Mapping[str, str]) -> GitPlace:
    """Return the place that a git URL names, with its commit fetched.

    `pins`: address → commit. Raises PlaceError.
    """
    url, ref, path = parse(written)
    known = pins.get(f"git+{url}@{ref}#{path}")
    commit = known or (ref if _COMMIT.fullmatch(ref) else None)
    if commit is None or not Repository(url, ref, commit).folder.is_dir():
        commit = _fetched(url, ref, commit)
    return GitPlace(Repository(url, ref, commit), path)


def parse(written: str) -> tuple[str, str, str]:
    """Return (URL of the repository, ref, path in it) of a git URL. Raises PlaceError for another form."""
    address, _, path = written.removeprefix("git+").partition("#")
    scheme, _, rest = address.partition("://")
    authority, slash, tail = rest.partition("/")
    tail, at, ref = tail.rpartition("@")
    if scheme not in SCHEMES:
        raise PlaceError("R122", f"`git+{scheme}` is not a way to a repository", f"write {FORM}, or with `ssh`")
    if not at or not ref or not path or not slash or not tail:
        lacks = "a path of a recipe after `#`" if at and ref else "a commit or tag after `@`"
        raise PlaceError("R122", f"`{written}` lacks {lacks}", f"write {FORM}")
    if urlsplit(f"{scheme}://{authority}").password is not None:
        message = "the URL holds a password, which complaints and locks would show"
        raise PlaceError("R122", message, "leave it out; git asks its credential helper")
    if authority.startswith("-") or "@-" in authority or not _REF.fullmatch(ref) or ".." in ref:
        raise PlaceError("R122", f"`{written}` names no repository and ref that git could fetch", f"write {FORM}")
    return f"{scheme}://{authority}/{tail}", ref, inside("", path, "the repository")


def is_moving(parent: Parent) -> bool:
    """Return whether a parent is from git by a tag or branch, which may later name another commit."""
    return parent.commit is not None and parent.name.startswith("git+") and parse(parent.name)[1] != parent.commit


@functools.cache
def current(parent: Parent) -> str | None:
    """Return the commit that the tag or branch of a git parent names now; None where it is gone.

    Raises PlaceError.
    """
    url, ref, _ = parse(parent.name)
    _refuse_offline(url, ref)
    done = _git("ls-remote", "--", url, f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}")
    if done.returncode:
        raise _unreached(url, ref, done)
    lines = (line.partition("\t") for line in done.stdout.decode().splitlines())
    found = {name: commit for commit, _, name in lines}
    names = (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}")
    return next((found[name] for name in names if name in found), None)


def _fetched(url: str, ref: str, commit: str | None) -> str:
    """Fetch a commit, or the ref, into the cache; return the commit."""
    _refuse_offline(url, ref)
    parent = Repository(url, ref, "").folder.parent
    staged = cache.staging(parent)
    try:
        _git("init", "--quiet", "--bare", "--template=", str(staged))
        done = _git("fetch", "--quiet", "--no-tags", "--depth=1", "--", url, commit or ref, at=staged)
        if done.returncode and commit is not None:  # the server does not serve single commits
            done = _git("fetch", "--quiet", "--no-tags", "--", url, "+refs/*:refs/fetched/*", at=staged)
        if done.returncode:
            raise _unreached(url, ref, done)
        name = f"{commit or 'FETCH_HEAD'}^{{commit}}"
        shown = _git("rev-parse", "--verify", "--quiet", "--end-of-options", name, at=staged)
        if shown.returncode:
            message = f"the repository {url} has no commit {commit or ref}"
            help = "a lock pins it; `runner lock RECIPE --upgrade` takes what the ref stands for now"
            raise PlaceError("R124", message, help if commit != ref else None)
        found = shown.stdout.decode().strip()
        cache.publish(staged, Repository(url, ref, found).folder)
        return found
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _refuse_offline(url: str, ref: str) -> None:
    if cache.is_offline() and not url.startswith("file:"):
        message = f"{url} at {ref} is not in the cache, and {cache.FORBIDDEN}"
        raise PlaceError("R124", message, "a commit, or a lock, needs no network once it was fetched")


def _unreached(url: str, ref: str, done: subprocess.CompletedProcess[bytes]) -> PlaceError:
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line.partition(":")[2].strip() for line in lines if line.startswith(("fatal:", "error:"))]
    why = (errors or lines or ["git printed nothing"])[0]
    if "couldn't find remote ref" in why or "not our ref" in why:
        help = "name a tag, a branch, or a commit with all its 40 digits"
        return PlaceError("R124", f"the repository {url} has no ref `{ref}`", help)
    help = "check the URL, the network and your access: the same `git ls-remote` must work"
    return PlaceError("R124", f"git cannot fetch {url} at {ref}: {why}", help)


def _git(*arguments: str, at: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run git with no settings of a surrounding repository, no hooks, no questions, and only the known transports."""
    allowed = ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_SSL_CAINFO")
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in allowed}
    env |= {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(SCHEMES),
        "LC_ALL": "C",
        "GIT_NO_LAZY_FETCH": "1",
    }
    command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", *(["-C", str(at)] if at else []), *arguments]
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_SECONDS, env=env
        )
    except FileNotFoundError:
        raise PlaceError("R124", "the program git is not installed", "install git, or extend another place") from None
    except subprocess.TimeoutExpired:
        message = f"git did not answer within {_SECONDS} seconds: {' '.join(arguments)}"
        raise PlaceError("R124", message, "check the network") from None
