"""A part of a checkpoint whose tensors are known beforehand and come one by one, in any order, also in slices.

The experts of a layer are written so, one after another: the file has its final size from the start, and takes the name
of a finished part once every tensor is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from runner.contracts.sites import Site
from runner.errors import StepFailed
from runner.model.checkpoint.reader import DTYPE_NAMES, DTYPES, CheckpointReader
from runner.model.checkpoint.safetensors_writer import Entry, aligned, copy_range, header, raw_bytes, sync_folder


class PlacedPart:
    """The file `path` of a part that holds `entries`; `close` publishes it."""

    def __init__(self, path: Path, entries: Iterable[Entry]) -> None:
        self.path = path
        self._unfinished = path.with_name(f".{path.name}.tmp")
        listed = aligned(sorted(entries, key=lambda entry: entry.name))
        start = header(listed)
        self._places: dict[str, tuple[Entry, int]] = {}
        offset = len(start)
        for entry in listed:
            self._places[entry.name] = entry, offset
            offset += entry.nbytes
        self._missing = set(self._places)
        self._file = os.open(self._unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write(start, 0)
        os.ftruncate(self._file, offset)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor. ValueError where it is not of the type and shape that were announced."""
        entry, offset = self._places[name]
        if (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) != (entry.dtype, entry.shape):
            given = f"{DTYPE_NAMES[tensor.dtype]} {list(tensor.shape)}"
            raise ValueError(f"`{name}` was to be {entry.dtype} {list(entry.shape)}, it is {given}")
        self._write(raw_bytes(tensor), offset)
        self._missing.discard(name)

    def copy(self, name: str, reader: CheckpointReader) -> None:
        """Write a tensor with the bytes that it has in another checkpoint; slices of it may follow."""
        entry, offset = self._places[name]
        source = reader.header(name)
        os.lseek(self._file, offset, os.SEEK_SET)
        what = f"{source.shard}, tensor `{name}`,"
        copy_range(reader.file(source.shard), source.begin, entry.nbytes, self._file, what)
        self._missing.discard(name)

    def put_site(self, site: Site, weight: torch.Tensor) -> None:
        """Write the matrix [rows, columns] of an expert to its place in the tensor that it shares with others."""
        entry, offset = self._places[site.tensor]
        shape, dtype = entry.shape[1:], DTYPES[entry.dtype]
        nbytes = entry.nbytes // entry.shape[0]
        offset += (site.index or 0) * nbytes
        data = torch.empty(nbytes, dtype=torch.uint8)
        if os.preadv(self._file, [data.numpy().data], offset) != nbytes:
            raise OSError(f"{self._unfinished} ends at byte {offset}")
        stored = data.view(dtype).view(shape)
        rows_of(stored, site).copy_(weight.to(dtype))
        self._write(raw_bytes(stored), offset)

    def close(self) -> None:
        """Publish the part. StepFailed where a tensor was not written."""
        if self._missing:
            first, more = min(self._missing), len(self._missing) - 1
            others = f" and {more} more" if more else ""
            raise StepFailed(f"nothing was written for `{first}`{others}: the experts of a layer are not complete")
        os.fsync(self._file)
        os.close(self._file)
        os.replace(self._unfinished, self.path)
        sync_folder(self.path.parent)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], offset + done)


def rows_of(matrix: torch.Tensor, site: Site) -> torch.Tensor:
    """The rows [rows, columns] of a site in the matrix of an expert as a tensor holds it: a view."""
    matrix = matrix.mT if site.transposed else matrix
    number, count = site.part
    rows = matrix.shape[0] // count
    return matrix[number * rows : (number + 1) * rows]


def site_weight(reader: CheckpointReader, site: Site) -> torch.Tensor:
    """The weight [rows, columns] of a site, as stored, or dequantized to the type of its scales where it is packed."""
    if site.index is not None:
        return rows_of(reader.read_slice(site.tensor, site.index), site)
    weight = reader.read_module_weight(site.name)
    return weight.T if site.transposed and not reader.is_packed(site.name) else weight
