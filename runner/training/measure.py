"""The peak memory of a process that trains."""

from __future__ import annotations

import torch

from runner.system import peak_memory as usage


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the GPU's allocator has held, or that this process has had resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return usage.peak()
