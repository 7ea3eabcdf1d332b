"""Measure the peak memory of a training process."""

from __future__ import annotations

import torch

from runner.system import peak_memory as usage


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes reserved by the GPU's allocator, or resident in this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return usage.peak()
