"""Facts of this machine's processor, read without torch: model, features, fast bf16, how threads wait.

The planner and the worker both use them.
"""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Features, by the kernel's names, whose instructions a compiler may emit with `-march=native`.
_EMITTED = re.compile(
    r"(s?sse\d|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|adx|v?aes|sha|gfni|v?pclmul|asimd|sve|sme(?!p)|fphp|bf16|i8mm)"
)

# A waiting OpenMP thread sleeps, with GNU's OpenMP after spinning some microseconds. By default it spins longer, and
# where other processes run it blocks the core that the awaited thread needs. Seconds for GPTQ of the demo model on two
# cores, on an idle machine and with one other busy process: sleeping at once 11.3 and 17.6, these settings 9.9 and
# 23.8, the default 9.8 and over 57.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}


def fast_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices faster than float32 ones. False where unknown.

    AMX tiles do, and AVX-512 BF16 of AMD, whose dot products of bf16 run at the full rate. Intel's AVX-512 BF16 without
    AMX has them on one port: no more operations a second than float32, and half as many in torch's products (measured
    on a Sapphire Rapids whose AMX the hypervisor hides: 73 against 157 GFLOP/s).
    """
    return "amx_bf16" in flags() or ("avx512_bf16" in flags() and _fields().get("vendor_id") == "AuthenticAMD")


def model() -> str:
    """Return the processor's model name from the kernel; empty where it has none."""
    return _fields().get("model name", "")


def flags() -> frozenset[str]:
    """Return the features by the kernel's names; where it lists none, those of every processor of the architecture."""
    listed = _fields().get("flags") or _fields().get("Features")
    if listed:
        return frozenset(listed.split())
    return frozenset({"asimd"} if platform.machine() in ("arm64", "aarch64") else ())


def instructions() -> list[str]:
    """Return the instruction sets that compiled code may need, sorted."""
    return sorted(flag for flag in flags() if _EMITTED.match(flag))


@cache
def _fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo."""
    try:
        lines = CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), value.strip())
    return found
