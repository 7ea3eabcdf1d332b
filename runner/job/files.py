"""Atomic writes, fsync, hashes, hard links, and the detection of a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.errors import MachineError

# Errors of link(2) after which a file is copied: another file system, one without links, too many links.
_COPY_INSTEAD = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})
_WEIGHTS_OF_GRAPHS = ".onnx_data"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Libraries written in C++ and Rust turn ENOSPC into exceptions of their own; the text of strerror remains.
_FULL_TEXT = ("No space left on device", "Disk quota exceeded")


def canonical(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def pretty(value: Any) -> str:
    """Return the readable JSON text of a value: sorted keys, two spaces, final newline."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace `path` by a file that holds `text`; a reader sees the old file or the complete new one.

    `durable` also survives a power cut: the file and its folder are fsynced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(fd)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(folder: Path) -> Iterator[Path]:
    """Yield every file below `folder`, sorted by its POSIX path relative to it. Links to folders are not followed."""
    found = [Path(base) / name for base, _, names in os.walk(folder) for name in names]
    yield from sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link of `source`, or a copy with the same times where links are not possible.

    The weights of ONNX graphs are copied: `onnx.load` refuses files that have several links.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if _WEIGHTS_OF_GRAPHS in source.name:
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _COPY_INSTEAD:
            raise
        shutil.copy2(source, target)


def same_file(source: Path, target: Path) -> bool:
    """Return whether `target` is a hard link of `source`, or looks like its copy (same size and modification time)."""
    try:
        one, two = source.stat(), target.stat()
    except OSError:
        return False
    if (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino):
        return True
    return (one.st_size, one.st_mtime_ns) == (two.st_size, two.st_mtime_ns)


def is_full(error: BaseException) -> bool:
    """Return whether an exception or one of its causes means that a disk or a quota is full."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return False
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(text in str(seen) for text in _FULL_TEXT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def full_disk(path: Path) -> MachineError:
    """Return the error of a full disk: which one, how much is free, how to continue."""
    nearest = path
    while not nearest.exists():
        nearest = nearest.parent
    usage = shutil.disk_usage(nearest)
    return MachineError(
        f"the disk that holds {path} is full: {size_text(usage.free)} of {size_text(usage.total)} are free",
        "free some space there; the same command then continues where it stopped",
    )


def size_text(count: int) -> str:
    """Format bytes: 1536 → "1.5 kB" (powers of 1000, as in `plan`)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
