"""Rows of tokens on disk, read and written anywhere: what enters and leaves the experts of a layer."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from runner.model.layerwise.activation_file import as_bytes


class TokenFile:
    """Vectors [tokens, width] of one dtype in a file of their own, zero until they are written."""

    def __init__(self, path: Path, tokens: int, width: int, dtype: torch.dtype) -> None:
        self.path, self.width, self.dtype = path, width, dtype
        self._row = width * dtype.itemsize
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.ftruncate(self._file, tokens * self._row)

    def write(self, start: int, rows: torch.Tensor) -> None:
        """Write rows [n, width] from token `start` on."""
        data = as_bytes(rows.detach().to("cpu", self.dtype).contiguous())
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], start * self._row + done)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """The rows [start, stop) in fresh memory."""
        rows = torch.empty((stop - start, self.width), dtype=self.dtype)
        data = as_bytes(rows)
        done = 0
        while done < len(data):
            count = os.preadv(self._file, [data[done:]], start * self._row + done)
            if count == 0:
                raise OSError(f"{self.path} ends at byte {start * self._row + done}")
            done += count
        return rows

    def remove(self) -> None:
        os.close(self._file)
        self.path.unlink(missing_ok=True)
