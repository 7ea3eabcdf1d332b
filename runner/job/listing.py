"""The jobs of a jobs folder: list them, find one, remove one."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import UsageError
from runner.job import batch_jobs, files, locks
from runner.job.batch_jobs import BatchJob
from runner.job.directory import JobDirectory, read_json
from runner.job.locks import Holder
from runner.job.store import Store


@dataclass(frozen=True)
class JobSummary:
    """A job in short. `status` is job.json's, but "interrupted" for a run that was killed, and "new" before any run.

    `done` counts the steps that are in the store, of `steps`; `size` is in bytes and counts every file once;
    `started`, `finished` and `seconds` are those of the last run. `matrix` has the values of its combination,
    `batch_jobs` the steps that Slurm has.
    """

    id: str
    path: Path
    recipe: str
    status: str
    exit_code: int | None
    started: str | None
    finished: str | None
    seconds: float | None
    steps: int
    done: int
    size: int
    holder: Holder | None
    matrix: Mapping[str, Any] = field(default_factory=dict)
    batch_jobs: tuple[BatchJob, ...] = ()


def jobs(root: Path) -> list[JobSummary]:
    """Return every job, the one that started last at the end."""
    found = [load(root, id) for id in _ids(root)]
    return sorted(found, key=lambda job: (job.started or "", job.id))


def load(root: Path, name: str) -> JobSummary:
    """Load the job that `find` finds by name, with its state, progress and size."""
    directory = JobDirectory(root, find(root, name))
    plan, state = read_json(directory.path / "plan.json"), read_json(directory.path / "job.json")
    keys = step_keys(plan)
    holder = locks.holder(directory.path / ".lock")
    status = str(state.get("status", "new"))
    if status == "running" and holder is None:
        status = "interrupted"
    return JobSummary(
        id=directory.id,
        path=directory.path,
        recipe=str(plan.get("recipe", "")),
        status=status,
        exit_code=state.get("exit_code"),
        started=state.get("started"),
        finished=state.get("finished"),
        seconds=state.get("seconds"),
        steps=len(keys),
        done=sum((root / "store" / key / "record.json").exists() for key in keys),
        size=_size(directory.path),
        holder=holder,
        matrix=plan.get("matrix", {}),
        batch_jobs=tuple(batch_jobs.of_steps(root / "store", keys)),
    )


def matching(root: Path, name: str) -> list[str]:
    """Return the ids of the jobs that `name` may mean, the one that started last at the end."""
    ids = _ids(root)
    wanted = Path(name).name if Path(name).name in ids else name
    found = [wanted] if wanted in ids else [id for id in ids if id.startswith(wanted)]
    return sorted(found, key=lambda id: (str(read_json(root / id / "job.json").get("started") or ""), id))


def find(root: Path, name: str) -> str:
    """Return the id of a job by its id, its path, or the beginning of exactly one id. UsageError suggests near ids."""
    found = sorted(matching(root, name))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"`{name}` may be {_names(found)}", "write more of the id")
    ids = _ids(root)
    near = difflib.get_close_matches(name, ids, n=3, cutoff=0.5)
    hint = f"did you mean {_names(near)}? " if near else ""
    raise UsageError(f"there is no job `{name}` in {root}", f"{hint}`runner jobs list` shows them all")


def step_keys(plan: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys of the steps of a plan.json, in order."""
    return tuple(step["key"] for step in plan.get("steps", []))


def remove(root: Path, name: str, *, entries: bool = True) -> int:
    """Remove a job and, with `entries`, the store entries that no other job uses; return the bytes freed.

    UsageError while the job is being applied.
    """
    directory = JobDirectory(root, find(root, name))
    lock = directory.lock("removing the job")
    if not lock.acquire(wait=False):
        raise UsageError(
            f"job `{directory.id}` is being applied by {locks.holder(directory.path / '.lock')}",
            "stop it first, or wait until it has ended",
        )
    try:
        mine = step_keys(read_json(directory.path / "plan.json"))
        others = {
            key for id in _ids(root) if id != directory.id for key in step_keys(read_json(root / id / "plan.json"))
        }
        freed = sum(path.lstat().st_size for path in files.walk(directory.path) if path.lstat().st_nlink == 1)
        gone = root / f".{directory.id}.removed"
        shutil.rmtree(gone, ignore_errors=True)
        directory.path.rename(gone)
        shutil.rmtree(gone)
    finally:
        lock.release()
    if entries:
        store = Store(root / "store")
        freed += sum(store.remove(key) for key in dict.fromkeys(mine) if key not in others)
    return freed


def _size(folder: Path) -> int:
    found = (path.lstat() for path in files.walk(folder))
    return sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())


def _names(ids: list[str]) -> str:
    return " or ".join(f"`{id}`" for id in ids)


def _ids(root: Path) -> list[str]:
    """Return the folders with a plan, sorted. Names with a leading dot are half made or half removed."""
    return sorted(path.parent.name for path in root.glob("[!.]*/plan.json"))
