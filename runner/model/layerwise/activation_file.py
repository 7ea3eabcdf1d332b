"""Hidden states on disk: what flows from one decoder layer to the next, read and written a batch at a time.

Plain reads and writes, not a memory map: the pages stay in the file system's cache and never count as this process's
memory, and the file of a finished layer is what an interrupted step resumes from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

CPU = torch.device("cpu")


class Activations:
    """Hidden states [windows, length, hidden] of one dtype in one file. Written once in order, then read in any order.

    Several processes may write one file, each windows of its own: `owned` are the numbers of those, all by default;
    `held` are those that any of them writes, all by default. `digest` is the sha256 of the sha256 of every one of
    those, so that a torn file is never resumed from. A batch is hashed and written by threads while the next one is
    computed, one batch behind; an error of that (a full disk) is raised by the next call. Batches for a GPU pass
    through pinned memory, so that neither side waits for the copy.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device = CPU,
        owned: Sequence[int] | None = None,
        held: Sequence[int] | None = None,
    ) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.row = shape[1] * shape[2] * dtype.itemsize
        self._owned = range(shape[0]) if owned is None else owned
        self._held = range(shape[0]) if held is None else held
        self._digests: list[bytes] = []
        self._written = 0
        self._file: int | None = None
        self._behind: Future[None] | None = None

    def write(self, start: int, hidden: torch.Tensor) -> None:
        """Append windows [n, length, hidden]; `start` must be the first of those that this process has yet to write."""
        expected = next(iter(self._owned[self._written : self._written + 1]), None)
        if start != expected:
            raise ValueError(f"hidden states are written in order: expected window {expected}, got {start}")
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, self.shape[0] * self.row)  # other processes may have written theirs
        hidden = hidden.detach().to(dtype=self.dtype).contiguous()
        arrived = None
        if hidden.device.type == "cuda":
            there, hidden = hidden, torch.empty(hidden.shape, dtype=self.dtype, pin_memory=True)
            hidden.copy_(there, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        data = as_bytes(hidden.cpu())
        self._wait()
        self._behind = _writer().submit(self._put, self._file, data, start * self.row, arrived)
        self._written += hidden.shape[0]

    def _put(self, file: int, data: memoryview, offset: int, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        digests = self._hashed(data)
        done = 0
        while done < len(data):
            done += os.pwrite(file, data[done:], offset + done)
        self._digests += digests

    def _hashed(self, data: memoryview) -> Iterator[bytes]:
        """Of every window in `data`, in order; they are made meanwhile, by as many threads as suit the machine."""
        rows = (data[begin : begin + self.row] for begin in range(0, len(data), self.row))
        return _hashers().map(lambda row: hashlib.sha256(row).digest(), rows)

    def _wait(self) -> None:
        """Until everything handed to the thread is in the file."""
        if self._behind is not None:
            behind, self._behind = self._behind, None
            behind.result()

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Windows [start, stop) in fresh memory of the device."""
        self._wait()
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        pinned = self.device.type == "cuda"
        hidden = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype, pin_memory=pinned)
        data = as_bytes(hidden)
        done = 0
        while done < len(data):
            count = os.preadv(self._file, [data[done:]], start * self.row + done)
            if count == 0:
                raise OSError(f"{self.path} ends at byte {start * self.row + done}")
            done += count
        return hidden.to(self.device, non_blocking=pinned)

    def window_digests(self) -> dict[int, bytes]:
        """Return the digest of every window that this process wrote."""
        self._wait()
        return dict(zip(self._owned, self._digests, strict=False))

    def digest(self, others: Sequence[Mapping[int, bytes]] = ()) -> str:
        """Return the digest of all windows; `others` are the `window_digests` of other processes."""
        found = self.window_digests()
        for more in others:
            found |= more
        return hashlib.sha256(b"".join(found[window] for window in sorted(found))).hexdigest()

    def intact(self, digest: str) -> bool:
        """Whether the file holds exactly what was written under that digest."""
        if not self.path.exists() or self.path.stat().st_size != self.shape[0] * self.row:
            return False
        whole = hashlib.sha256()
        with self.path.open("rb") as file:
            for window in self._held:
                file.seek(window * self.row)
                whole.update(hashlib.sha256(file.read(self.row)).digest())
        return whole.hexdigest() == digest

    def close(self) -> None:
        self._wait()
        if self._file is not None:
            os.close(self._file)
            self._file = None


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "activations")


@cache
def _hashers() -> ThreadPoolExecutor:
    """A GPU runs a layer faster than one core hashes what comes out; on a CPU the cores have the layer to compute."""
    return ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2)), "digests")


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable, without a copy."""
    return memoryview(tensor.view(torch.uint8).numpy().reshape(-1))  # type: ignore[arg-type]  # ndarrays are buffers


def batches(windows: int, length: int, tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of windows of about `tokens` tokens each. The same for every pass of a step: batching moves rounding."""
    size = max(1, tokens // length)
    for start in range(0, windows, size):
        yield start, min(windows, start + size)
