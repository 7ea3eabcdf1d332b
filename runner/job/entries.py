"""Folders of the step store: committed entries, staging folders, and the comparison of a folder with its record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from runner.job import files
from runner.job.records import Record

ALWAYS_HASHED = 64 * 2**20


@dataclass(frozen=True)
class StoreEntry:
    """A committed step whose files match its record."""

    path: Path
    record: Record

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def names(self) -> tuple[str, ...]:
        """The files, relative to `path`. The log is no part of the result, and may have been removed."""
        log = ("log.txt",) if (self.path / "log.txt").exists() else ()
        return ("record.json", "metrics.json", *log, *(f"out/{fact.path}" for fact in self.record.files))


@dataclass(frozen=True)
class Damage:
    """A folder under a key that does not match its record; `reason` is a clause."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Stage:
    """The staging folder of a step."""

    key: str
    path: Path

    @classmethod
    def for_key(cls, root: Path, key: str) -> Self:
        return cls(key, root / ".staging" / key)

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"


def difference(path: Path, record: Record, *, thorough: bool = False) -> str | None:
    """Return how a folder differs from its record: a clause, or None. `thorough` hashes every file, of any size."""
    listed = {fact.path for fact in record.files}
    for file in files.walk(path / "out"):
        name = file.relative_to(path / "out").as_posix()
        if name not in listed and not file.name.startswith("."):
            return f"out/{name} is not in its record"
    for fact in record.files:
        file = path / "out" / fact.path
        try:
            status = file.stat()
        except FileNotFoundError:
            return f"out/{fact.path} is missing"
        if status.st_size != fact.size:
            return f"out/{fact.path} has {status.st_size} bytes, its record says {fact.size}"
        trusted = not thorough and status.st_size > ALWAYS_HASHED and status.st_mtime_ns == fact.mtime_ns
        if not trusted and files.sha256(file) != fact.sha256:
            return f"out/{fact.path} has other bytes than were written"
    try:
        metrics = (path / "metrics.json").read_bytes()
    except FileNotFoundError:
        return "metrics.json is missing"
    if metrics != files.pretty(dict(record.metrics)).encode():
        return "metrics.json has other bytes than were written"
    return None
