"""The safetensors container, byte for byte: headers, and copying ranges between files. Imports no torch.

A file is 8 bytes of header length (little-endian), a JSON header padded with spaces to a multiple of 8, then the
tensors without gaps. Readers view tensors in place, so each must start at a multiple of its element size: tensors are
laid out by element size, largest first.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contracts.facts import DTYPE_BYTES
from runner.errors import MachineError, StepFailed

if TYPE_CHECKING:
    import torch

_CHUNK = 8 << 20
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM}
_ELEMENT_BYTES = {**DTYPE_BYTES, "U64": 8, "U32": 4, "U16": 2}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file to be written. `nbytes` follow from dtype and shape; stored to avoid recomputing them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def aligned(entries: Iterable[Entry]) -> list[Entry]:
    """Return the order in which a file holds its tensors: by element size, then as given."""
    return sorted(entries, key=lambda entry: -_ELEMENT_BYTES[entry.dtype])


def header(entries: Iterable[Entry]) -> bytes:
    """Return the header of a file that holds `entries` in this order; transformers needs `format: pt`."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.nbytes
        described[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_entries(path: Path) -> dict[str, tuple[Entry, int]]:
    """Return the tensors of a file that this module wrote: name → (entry, absolute offset)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        described = json.loads(file.read(length))
    described.pop("__metadata__", None)
    found = {}
    for name, value in described.items():
        begin, end = value["data_offsets"]
        found[name] = (Entry(name, value["dtype"], tuple(value["shape"]), end - begin), 8 + length + begin)
    return found


@contextmanager
def written(path: Path) -> Iterator[int]:
    """Yield a descriptor for a new file that appears under `path`, synced, only if the block succeeds."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            yield file
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise MachineError(
                f"the disk is full: {path} could not be written, {free} bytes are free",
                "free some space and run the same command again: it goes on from here",
            ) from error
        raise StepFailed(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor on any device, in row-major order."""
    import torch

    flat = tensor.detach().cpu().reshape(-1)
    if flat.stride() != (1,):  # also of a single element, of which contiguous() thinks any stride right
        flat = flat.clone(memory_format=torch.contiguous_format)
    found: memoryview = flat.view(torch.uint8).numpy().data
    return found


def write_all(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view[: 1 << 30]) :]


def copy_range(source: int, offset: int, count: int, target: int, what: str) -> None:
    """Append `count` bytes at `offset` of `source` to `target`, in the kernel where possible.

    `what` names the bytes in errors.
    """
    done = 0
    in_kernel = hasattr(os, "copy_file_range")
    while done < count:
        if in_kernel:
            try:
                moved = os.copy_file_range(source, target, min(count - done, 1 << 30), offset_src=offset + done)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                in_kernel = False
                continue
        else:
            chunk = os.pread(source, min(count - done, _CHUNK), offset + done)
            write_all(target, chunk)
            moved = len(chunk)
        if not moved and in_kernel:  # some file systems copy nothing and report it only this way
            in_kernel = False
            continue
        if not moved:
            raise StepFailed(
                f"{what} is cut short: {count} bytes were expected, only {done} could be read",
                "download or copy the checkpoint again",
            )
        done += moved
