"""What is installed here, as far as it decides results: compared between the machines that compute one apply."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import runner
from runner.plan.machine import package_version
from runner.system import cpu

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "compressed-tensors")


@functools.cache
def facts() -> dict[str, str]:
    """Return the versions of Python, runner and the packages that compute, and a hash of runner's code."""
    python = ".".join(platform.python_version_tuple()[:2])
    packages = {package: package_version(package) or "absent" for package in _PACKAGES}
    return {"Python": python, "runner": runner.__version__, "runner's code": _code(), **packages}


def processor() -> tuple[str, tuple[str, ...]]:
    """Return the model of this machine's processor, and its instruction sets."""
    return cpu.model() or platform.processor(), tuple(cpu.instructions())


def differences(there: Mapping[str, str]) -> list[str]:
    """Return how another machine differs from this one: "torch 2.12.0, here 2.13.0"."""
    here = facts()
    return [f"{name} {there.get(name, 'absent')}, here {value}" for name, value in here.items()
            if there.get(name) != value]  # fmt: skip


def _code() -> str:
    """Return a short hash of all modules: two checkouts of one version may differ."""
    root = Path(runner.__file__).parent
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hashed.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()[:12]
