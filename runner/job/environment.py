"""The machine and its packages, for records. Reads package metadata only and imports no package."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from typing import Any

import runner
from runner.system import cpu, installed

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
# The facts, besides packages, that can change the sums of a step (the order and the width of additions).
_DECIDING = {
    "threads": "threads", "cpu": "processor", "instructions": "its instructions", "device": "device",
    "platform": "system", "python": "Python", "runner": "runner",
}  # fmt: skip


@cache
def packages() -> Mapping[str, str]:
    """Return every installed package with its version, sorted by name, as they were when this process first asked.

    A worker asks at each step: reading them takes longer than all else that a small step costs.
    """
    return installed.versions()


def cpu_model() -> str:
    return cpu.model() or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Return the processor's vector instructions by which torch selects kernels; empty where none is known.

    The model name is not enough: virtual machines report one name for many processors.
    """
    found = cpu.flags()
    return [name for name in _INSTRUCTIONS if name in found]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two environments that may change a result's bytes: "threads 8 → 2"."""
    found = [
        f"{label} {_shown(before[name])} → {_shown(now[name])}"
        for name, label in _DECIDING.items()
        if name in before and name in now and before[name] != now[name]
    ]
    old, new = before.get("packages", {}), now.get("packages", {})
    found += [
        f"{name} {old.get(name, 'absent')} → {new.get(name, 'absent')}"
        for name in sorted({*old, *new} - {"runner"})
        if old.get(name) != new.get(name)
    ]
    return found


def _shown(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def default_threads() -> int:
    """Return OMP_NUM_THREADS where it is set, else the number of cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(device: str, threads: int) -> dict[str, Any]:
    """Return the contents of environment.json."""
    return {
        "schema": 1,
        "runner": runner.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "instructions": instructions(),
        "threads": threads,
        "device": device,
        "packages": dict(packages()),
    }
