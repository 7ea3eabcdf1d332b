"""The machine and the packages, as evidence. Reads metadata only: nothing is imported, least of all torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import runner
from runner.system import cpu

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
# What of an environment can change the sums of a step, beside packages: the order and the width of additions.
_DECIDING = {
    "threads": "threads", "cpu": "processor", "instructions": "its instructions", "device": "device",
    "platform": "system", "python": "Python", "runner": "runner",
}  # fmt: skip


def packages() -> dict[str, str]:
    """Every installed package with its version, sorted by name."""
    import importlib.metadata  # a cached apply does without it

    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a half-removed package has none
            found.setdefault(name.lower().replace("_", "-"), distribution.version)  # the first on sys.path is imported
    return dict(sorted(found.items()))


def cpu_model() -> str:
    return cpu.model() or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """The vector instructions of the processor by which torch chooses how to multiply; empty where none is known.

    The name of the model does not tell: virtual machines show one name for many processors.
    """
    found = cpu.flags()
    return [name for name in _INSTRUCTIONS if name in found]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments that may make other bytes of the same key: "threads 8 → 2"."""
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
    """OMP_NUM_THREADS where it is set, else the cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(device: str, threads: int) -> dict[str, Any]:
    """environment.json."""
    return {
        "schema": 1,
        "runner": runner.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "instructions": instructions(),
        "threads": threads,
        "device": device,
        "packages": packages(),
    }
