"""Find and delete what a jobs folder no longer needs: old jobs, and store entries that no remaining job uses.

Retained are accepted jobs, those being applied, the last ones of every recipe and combination, and everything younger
than a given age. A job is deleted with its folder: its steps/ and output/ are links to the bytes in the store.
"""

from __future__ import annotations

import calendar
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.errors import UsageError
from runner.job import accepted, files, listing, records
from runner.job.directory import read_json
from runner.job.store import Store


@dataclass(frozen=True)
class EntryInfo:
    """An entry of the store, from its record; `kind` and `finished` are "" where there is no valid record.

    `size` is in bytes, `jobs` are the ids of those that use it.
    """

    key: str
    kind: str
    id: str
    size: int
    finished: str
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Garbage:
    """Jobs and entries to delete. `leftovers`: folders of interrupted and damaged steps; `freed` is in bytes."""

    jobs: tuple[str, ...]
    entries: tuple[EntryInfo, ...]
    leftovers: tuple[Path, ...]
    freed: int


def entries(root: Path) -> list[EntryInfo]:
    """Return every entry of the store, unverified, the oldest first."""
    store, used = Store(root / "store"), _users(root)
    found = []
    for key in store.keys():  # noqa: SIM118 -- a Store is no mapping
        try:
            record = records.parse((store.root / key / "record.json").read_text(encoding="utf-8"))
            kind, id, finished = record.kind, record.id, record.finished
        except (OSError, ValueError):
            kind = id = finished = ""
        size = sum(path.lstat().st_size for path in files.walk(store.root / key))
        found.append(EntryInfo(key, kind, id, size, finished, tuple(used.get(key, ()))))
    return sorted(found, key=lambda entry: (entry.finished, entry.key))


def garbage(root: Path, keep_jobs: int, older_than: float) -> Garbage:
    """Return what is eligible for deletion: not needed by a retained job, and older than `older_than` seconds."""
    oldest = time.time() - older_than
    good = accepted.every(root)
    retained = {entry.job for entry in good}
    jobs = listing.jobs(root)
    recent: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        recent.setdefault((job.recipe, files.canonical(dict(job.matrix))), []).append(job.id)
        if job.holder is not None or _seconds(job.started or "") >= oldest or _touched(job.path) >= oldest:
            retained.add(job.id)
    retained |= {id for ids in recent.values() for id in ids[-keep_jobs:] if keep_jobs > 0}
    gone = tuple(job.id for job in jobs if job.id not in retained)
    needed = {key for id in retained for key in _keys(root, id)} | {key for entry in good for key in entry.keys}
    store = root / "store"
    old = tuple(e for e in entries(root) if e.key not in needed and _touched(store / e.key, e.finished) < oldest)
    folders = [*sorted((store / ".corrupt").glob("*")), *sorted((store / ".staging").glob("*"))]
    leftovers = tuple(
        path for path in folders
        if (path.parent.name == ".corrupt" or path.name.partition(".")[0] not in needed) and _touched(path) < oldest
    )  # fmt: skip
    folders = [*(root / id for id in gone), *(store / e.key for e in old), *leftovers]
    return Garbage(gone, old, leftovers, _freed(folders))


def remove(root: Path, found: Garbage) -> None:
    """Remove what `garbage` found, except what a process or a job uses by now."""
    store = Store(root / "store")
    for id in found.jobs:
        with suppress(UsageError):  # it is being applied by now, or was removed by another process
            listing.remove(root, id, entries=False)
    needed, seen = _users(root), root.stat().st_mtime_ns
    for entry in found.entries:
        if (now := root.stat().st_mtime_ns) != seen:  # a new job may use entries
            needed, seen = _users(root), now
        if entry.key not in needed:
            store.remove(entry.key)
    for path in found.leftovers:
        lock = store.lock(path.name.partition(".")[0].partition("-")[0], "removing leftovers")
        if lock.acquire(wait=False):
            try:
                shutil.rmtree(path)
            finally:
                lock.release()


def _keys(root: Path, id: str) -> tuple[str, ...]:
    return listing.step_keys(read_json(root / id / "plan.json"))


def _users(root: Path) -> dict[str, list[str]]:
    """Return key → the ids of the jobs that use it, sorted."""
    used: dict[str, list[str]] = {}
    for path in sorted(root.glob("[!.]*/plan.json")):
        for key in dict.fromkeys(_keys(root, path.parent.name)):
            used.setdefault(key, []).append(path.parent.name)
    return used


def _touched(path: Path, finished: str = "") -> float:
    """Return when a folder was made or changed last, in seconds since the epoch."""
    return _seconds(finished) if finished else path.lstat().st_mtime


def _seconds(text: str) -> float:
    """Convert an ISO 8601 UTC time to seconds since the epoch; 0 for another text."""
    try:
        return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return 0.0


def _freed(folders: Iterable[Path]) -> int:
    """Return the bytes of the files that have all their links below `folders`."""
    seen: dict[tuple[int, int], int] = {}
    freed = 0
    for folder in folders:
        for path in files.walk(folder):
            status = path.lstat()
            place = (status.st_dev, status.st_ino)
            seen[place] = seen.get(place, 0) + 1
            if seen[place] == status.st_nlink:
                freed += status.st_size
    return freed
