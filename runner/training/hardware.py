"""Whether this CPU multiplies bf16 in hardware, read without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def cpu_has_bf16() -> bool:
    """What runner.model.statistics.fast_bf16 finds with torch: AMX tiles or AVX-512 BF16. False where unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return "amx_tile" in flags or "avx512_bf16" in flags
