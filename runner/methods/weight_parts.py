"""A weight [out, in] in parts: runs of equal groups of columns, and chunks of rows that are worked on at once."""

from __future__ import annotations

import torch

from runner.model.checkpoint.quantization.elements import Levels

CHUNK = 1 << 18  # elements worked on at once on a CPU: four float32 buffers of them stay in the caches
GPU_CHUNK = 1 << 25  # and on a GPU, where launching an operation on fewer would cost more than the operation


def grouped(part: torch.Tensor, size: int) -> torch.Tensor:
    """Return [rows, G · size] as float32 [rows, G, size]."""
    return part.float().reshape(part.shape[0], -1, size)


def runs(columns: int, levels: Levels) -> list[tuple[slice, int]]:
    """Return the columns as runs of equal groups: all full groups, and a shorter last one if there is one."""
    size = levels.numbers.columns(columns)
    full = columns - columns % size
    found = [(slice(0, full), size), (slice(full, columns), columns - full)]
    return [run for run in found if run[0].start < run[0].stop]


def chunks(weight: torch.Tensor) -> list[slice]:
    """Return the rows in slices of about CHUNK elements."""
    rows, columns = weight.shape
    count = max(1, (CHUNK if weight.device.type == "cpu" else GPU_CHUNK) // columns)
    return [slice(begin, min(begin + count, rows)) for begin in range(0, rows, count)]
