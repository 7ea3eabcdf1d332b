"""The batch jobs that steps are while Slurm queues and runs them: notes in the store, for whoever asks later."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = ".slurm"  # in the store: submitit's files, the events of running jobs, and these notes


@dataclass(frozen=True)
class BatchJob:
    """A step that was submitted: its key and id, the number that Slurm gave it, and the file of its log."""

    key: str
    step: str
    number: str
    log: str


def note(store: Path, job: BatchJob) -> None:
    path = _file(store, job.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(job)), encoding="utf-8")
    temporary.replace(path)


def forget(store: Path, key: str) -> None:
    _file(store, key).unlink(missing_ok=True)


def of_steps(store: Path, keys: Iterable[str]) -> list[BatchJob]:
    """Return the batch jobs of steps that are not in the store yet, in the order of `keys`."""
    found = []
    for key in keys:
        if (store / key / "record.json").exists():
            continue
        try:
            found.append(BatchJob(**json.loads(_file(store, key).read_text(encoding="utf-8"))))
        except FileNotFoundError:
            continue
    return found


def _file(store: Path, key: str) -> Path:
    return store / FOLDER / f"{key}.job.json"
