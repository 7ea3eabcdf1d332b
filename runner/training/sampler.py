"""Choose the windows of each optimizer step: a function of the seed only, for any number of processes."""

from __future__ import annotations

import torch


def order(windows: int, count: int, seed: int) -> torch.Tensor:
    """Return `count` row numbers [count], int64: a new permutation of all `windows` for every pass over the data."""
    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(windows, generator=generator) for _ in range(-(-count // windows))]
    return torch.cat(passes)[:count]


def micro_batches(rows: torch.Tensor, batch: int, accumulation: int, processes: int, rank: int) -> list[list[int]]:
    """Return the forwards of one process: `accumulation` lists of rows for every `batch` rows of all processes.

    Every list is of batch / (processes · accumulation) rows, so that the mean of the means is that of the batch.
    """
    micro = batch // (processes * accumulation)
    mine = rows.view(-1, accumulation, processes, micro)[:, :, rank]
    found: list[list[int]] = mine.reshape(-1, micro).tolist()
    return found


def evaluation_batches(windows: int, micro: int, processes: int, rank: int) -> list[tuple[int, int, bool]]:
    """Return (begin, end, counts) of each forward of one process over evaluation windows.

    Every process does the same number of forwards, as sharded models require; surplus ones do not count.
    """
    batches = [(begin, min(begin + micro, windows)) for begin in range(0, windows, micro)]
    rounds = -(-len(batches) // processes)
    mine = range(rank, rounds * processes, processes)
    return [(*batches[min(i, len(batches) - 1)], i < len(batches)) for i in mine]
