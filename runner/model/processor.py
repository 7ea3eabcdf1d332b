"""What this machine's processor multiplies fast, read without torch: planner and worker decide alike."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than float32 ones. False where unknown.

    AMX tiles do, and AVX-512 BF16 of AMD, whose dot products of bf16 run at the full rate. Intel's AVX-512 BF16 without
    AMX has them on one port: no more operations a second than float32, and half as many in torch's products (measured
    on a Sapphire Rapids whose AMX the hypervisor hides: 73 against 157 GFLOP/s).
    """
    return "amx_bf16" in flags() or ("avx512_bf16" in flags() and _fields().get("vendor_id") == "AuthenticAMD")


def flags() -> frozenset[str]:
    """The instruction sets that the kernel names, in its words. Empty where it names none."""
    return frozenset((_fields().get("flags") or _fields().get("Features") or "").split())


@cache
def _fields() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor."""
    try:
        lines = CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), value.strip())
    return found
