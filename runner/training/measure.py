"""The peak memory of a process that trains."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the GPU's allocator has held, or that this process has had resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the C library knows
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
