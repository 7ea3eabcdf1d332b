"""The machine and the packages, as evidence. Reads metadata only: nothing is imported, least of all torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import runner


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
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
        "threads": threads,
        "device": device,
        "packages": packages(),
    }
