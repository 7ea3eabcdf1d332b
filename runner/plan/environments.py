"""Environments of foreign tools: which packages a step's environment holds, resolved to exact versions with hashes.

uv resolves where there is one, else pip. The resolution of equal requirements is cached, and pinned by a recipe's lock,
so that a key names the packages that compute.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.errors import MachineError
from runner.plan.machine import package_version

_SECONDS = 3600  # some environments are gigabytes
_LINES_SHOWN = 12
# What pip and uv write where nothing answers at an index.
_UNREACHED = ("connection broken by", "Failed to fetch", "error sending request")
_WHEELHOUSE = "or name a folder of wheels with `find_links` and `index: none`"


@dataclass(frozen=True)
class Wanted:
    """What an environment is to hold, as a recipe or a kind says. `python` None: the version of this one.

    `index` replaces the package index ("none": only `find_links`), `find_links` is a folder or page of wheels.
    """

    requirements: tuple[str, ...]
    python: str | None = None
    index: str | None = None
    find_links: str | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Wanted:
        """Return the environment of an entry of `environments`."""
        return cls(tuple(entry["requirements"]), entry.get("python"), entry.get("index"), entry.get("find_links"))

    @property
    def version(self) -> str:
        return self.python or ".".join(platform.python_version_tuple()[:2])


@dataclass(frozen=True)
class Environment:
    """A resolved environment: `packages` are lines of requirements with versions and hashes, sorted."""

    wanted: Wanted
    packages: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The identity of what is installed: the packages and the version of Python."""
        text = json.dumps({"python": self.wanted.version, "packages": list(self.packages)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def document(self) -> dict[str, Any]:
        """Return the environment as JSON, for locks and workers."""
        return {**asdict(self.wanted), "packages": list(self.packages), "digest": self.digest}


def from_document(document: Mapping[str, Any]) -> Environment:
    """Return the environment that `document` describes."""
    return Environment(Wanted.of(document), tuple(document["packages"]))


def folder() -> Path:
    """Return where environments and their resolutions are: $RUNNER_ENVIRONMENTS, or a folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("RUNNER_ENVIRONMENTS") or Path(cache) / "runner" / "environments")


def resolve(wanted: Wanted, pinned: Mapping[str, Any] | None = None) -> Environment:
    """Return the environment that is wanted: as `pinned` by a lock, from the cache, or resolved now.

    `pinned` counts only where it was made for the same requirements. Raises MachineError with the words of the
    resolver.
    """
    if pinned is not None and Wanted.of(pinned) == wanted:
        return from_document(pinned)
    name = hashlib.sha256(json.dumps(asdict(wanted), sort_keys=True).encode()).hexdigest()
    cached = folder() / "resolved" / f"{name}.json"
    try:
        return from_document(json.loads(cached.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        pass  # never resolved, or torn
    found = Environment(wanted, _with_uv(wanted) if uv() else _with_pip(wanted))
    cached.parent.mkdir(parents=True, exist_ok=True)
    temporary = cached.with_name(f".{name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found.document(), indent=2), encoding="utf-8")
    os.replace(temporary, cached)
    return found


def uv() -> list[str] | None:
    """Return the command of uv; None where there is none."""
    program = shutil.which("uv")
    if program is not None:
        return [program]
    return [sys.executable, "-m", "uv"] if package_version("uv") else None


def is_offline() -> bool:
    return os.environ.get("RUNNER_OFFLINE") == "1"


def sources(wanted: Wanted, *, with_uv: bool) -> list[str]:
    """Return the options for uv or pip that name where packages come from.

    Offline, uv takes what it has in its cache; pip, which cannot, takes wheels of `find_links` alone.
    """
    if wanted.index == "none" or (is_offline() and not with_uv):
        found = ["--no-index"]
    else:
        found = [*(["--offline"] if is_offline() else []), *(["--index-url", wanted.index] if wanted.index else [])]
    return [*found, *(["--find-links", wanted.find_links] if wanted.find_links else [])]


def run(command: Sequence[str], what: str, text: str | None = None) -> str:
    """Run a command and return its output. Raises MachineError with the last lines of what it wrote."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineError(f"{what}: {error}", "`runner doctor` examines the installation") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line][-_LINES_SHOWN:]
        words = "".join(f"\n    {line}" for line in lines)
        raise MachineError(f"{what}:{words}", _remedy(done.stderr))
    return done.stdout


def _remedy(words: str) -> str:
    if is_offline():
        return f"leave out `--offline`, {_WHEELHOUSE}"
    if any(clause in words for clause in _UNREACHED):
        return f"check the network and the address of the package index, {_WHEELHOUSE}"
    return "change `requirements`, or name where packages come from with `index` and `find_links`"


def _with_uv(wanted: Wanted) -> tuple[str, ...]:
    command = [
        *(uv() or ()), "pip", "compile", "-", "--generate-hashes", "--no-header", "--no-annotate", "--quiet",
        "--no-config", "--python-version", wanted.version, *sources(wanted, with_uv=True),
    ]  # fmt: skip
    text = run(command, "the environment does not resolve", "\n".join(wanted.requirements) + "\n")
    joined = text.replace("\\\n", " ")
    lines = (" ".join(line.split()) for line in joined.splitlines() if "==" in line or "@" in line)
    return tuple(sorted(line for line in lines if not line.startswith("--")))


def _with_pip(wanted: Wanted) -> tuple[str, ...]:
    here = ".".join(platform.python_version_tuple()[:2])
    if wanted.version != here:
        raise MachineError(f"the environment asks for Python {wanted.version}; without uv only {here} is here",
                               "`pip install uv`, or leave out `python`")  # fmt: skip
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-",
        *sources(wanted, with_uv=False), *wanted.requirements,
    ]  # fmt: skip
    report = json.loads(run(command, "the environment does not resolve"))
    found = []
    for entry in report["install"]:
        name = entry["metadata"]["name"].lower()
        sha = _sha256(name, entry["download_info"].get("archive_info") or {})
        found.append(f"{name}=={entry['metadata']['version']} --hash=sha256:{sha}")
    return tuple(sorted(found))


def _sha256(name: str, archive: Mapping[str, Any]) -> str:
    """Return the hash that pip reports of an archive: "hashes" since pip 23.1, "hash" before."""
    algorithm, _, digest = str(archive.get("hash", "")).partition("=")
    digest = str(archive.get("hashes", {}).get("sha256") or (digest if algorithm == "sha256" else ""))
    if not digest:
        raise MachineError(f"the environment cannot be pinned: pip knows no sha256 of `{name}`",
                               "take it from a package index, not from a folder or a repository")  # fmt: skip
    return digest
