"""The environments of foreign tools on this machine: built once, in a folder named by the digest of their packages.

<environments>/<digest>/          a virtual environment; environment.json, written last, says what it holds
<environments>/.locks/<digest>    held while it is built or removed
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner.job import files, records
from runner.job.locks import Lock
from runner.plan import environments
from runner.plan.environments import Environment

_FACTS = "environment.json"


@dataclass(frozen=True)
class Built:
    """An environment that is there. `size` is in bytes; `made` is ISO 8601 UTC."""

    digest: str
    requirements: tuple[str, ...]
    python: str
    made: str
    size: int
    path: Path


def path_of(environment: Environment) -> Path:
    return environments.folder() / environment.digest


def is_built(environment: Environment) -> bool:
    return (path_of(environment) / _FACTS).is_file()


def ensure(environment: Environment, report: Callable[[str], None]) -> Path:
    """Return the interpreter of an environment; build it where it is missing, and `report` that.

    Raises MachineError with the words of the installer; nothing of a failed build is left.
    """
    target = path_of(environment)
    if not is_built(environment):
        with Lock(target.parent / ".locks" / environment.digest, "building an environment"):
            if not is_built(environment):  # another process may have built it meanwhile
                report(f"builds the environment of {', '.join(environment.wanted.requirements)}")
                _build(environment, target)
    return _interpreter(target)


def built() -> list[Built]:
    """Return all environments that are there, by the time they were made."""
    found = []
    for file in environments.folder().glob(f"*/{_FACTS}"):
        facts = json.loads(file.read_text(encoding="utf-8"))
        size = sum(path.lstat().st_size for path in files.walk(file.parent))
        found.append(
            Built(file.parent.name, tuple(facts["requirements"]), facts["version"], facts["made"], size, file.parent)
        )
    return sorted(found, key=lambda one: (one.made, one.digest))


def remove(digest: str) -> None:
    """Remove an environment; what uses it now fails."""
    target = environments.folder() / digest
    with Lock(target.parent / ".locks" / digest, "removing an environment"):
        (target / _FACTS).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)


def _build(environment: Environment, target: Path) -> None:
    wanted = environment.wanted
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    listed = target.with_name(f"{target.name}.txt")
    listed.write_text("\n".join(environment.packages) + "\n", encoding="utf-8")
    uv, what = environments.uv(), "the environment cannot be built"
    try:
        if uv is not None:
            environments.run([*uv, "venv", "--quiet", "--no-config", "--python", wanted.version, str(target)], what)
            install = [*uv, "pip", "install", "--quiet", "--no-config", "--python", str(_interpreter(target))]
        else:
            environments.run([sys.executable, "-m", "venv", str(target)], what)
            install = [str(_interpreter(target)), "-m", "pip", "install", "--quiet"]
        sources = environments.sources(wanted, with_uv=uv is not None)
        environments.run([*install, "--require-hashes", "--no-deps", *sources, "-r", str(listed)], what)
        facts = {**environment.document(), "version": wanted.version, "made": records.now()}
        files.write_atomic(target / _FACTS, files.pretty(facts))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        listed.unlink(missing_ok=True)


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
