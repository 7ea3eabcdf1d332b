"""The job directory: one plan, what it ran on, what happened, and what came out.

    <jobs>/<recipe>-<key>/
      recipe.yaml  recipe.lock     the resolved recipe, standalone; what it was resolved to
      plan.json  environment.json  the plan; the machine and packages of the last run that computed anything
      events.jsonl                 every event, one run after another
      job.json                     how the last run ended
      provenance.json              what came out and what went in, as an in-toto statement
      worker.log                   what the worker process wrote outside of steps
      steps/NN-id/                 the store entry, by hard link (a copy across file systems)
      output/                      the files of the last checkpoint
      .lock                        held while applying

A folder that other processes may read appears complete: it is made under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.job import files, locks
from runner.job.entries import StoreEntry
from runner.job.locks import Holder, Lock
from runner.plan import lock_file
from runner.plan.assignments import Assigned
from runner.plan.types import Plan, PlannedStep
from runner.recipe.syntax import yaml_text


@dataclass(frozen=True)
class JobState:
    """job.json. `status`: "running", "done", "failed", "gate-missed" or "interrupted". Times are ISO 8601 UTC."""

    status: str
    exit_code: int | None
    started: str
    finished: str | None
    seconds: float | None
    memory: int | None
    command: str
    pid: int
    schema: int = 1


class JobDirectory:
    def __init__(self, root: Path, id: str) -> None:
        self.root = root
        self.id = id
        self.path = root / id

    @classmethod
    def create(cls, root: Path, plan: Plan) -> JobDirectory:
        """Return the directory of a plan, made if it is missing. Its lock is not held yet."""
        self = cls(root, plan.job_id)
        if not self.path.exists():
            staging = root / f".{plan.job_id}.{os.getpid()}.new"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            for name, content in _contents(plan).items():
                files.write_atomic(staging / name, content, durable=False)
            try:
                os.rename(staging, self.path)
            except OSError:
                shutil.rmtree(staging)
                if not self.path.exists():
                    raise
        return self

    def lock(self, command: str = "") -> Lock:
        return Lock(self.path / ".lock", command)

    def holder(self) -> Holder | None:
        """Return the process that applies this plan now, or None."""
        return locks.holder(self.path / ".lock")

    def refresh(self, plan: Plan) -> None:
        """Rewrite the files that are missing or were changed. The caller holds the lock."""
        for name, content in _contents(plan).items():
            if _read(self.path / name) != content:
                files.write_atomic(self.path / name, content)
        for leftover in self.path.glob(".*.new"):
            shutil.rmtree(leftover)
        if (self.path / "steps").is_dir():
            for leftover in (self.path / "steps").glob(".*.new"):
                shutil.rmtree(leftover)

    def has_environment(self) -> bool:
        return all((self.path / name).is_file() for name in ("environment.json", "recipe.lock"))

    def write_environment(self, plan: Plan, facts: Mapping[str, Any]) -> None:
        """Write environment.json, and recipe.lock with the versions of packages."""
        files.write_atomic(self.path / "environment.json", files.pretty(facts))
        self.write_lock(plan)

    def write_lock(self, plan: Plan, assigned: Assigned | None = None) -> None:
        """Write recipe.lock, with the bits that steps assigned."""
        lock = lock_file.lock_plans([plan], assigned=[assigned or {}])
        files.write_atomic(self.path / lock_file.SHARED, lock_file.dump(lock, "recipe.yaml"))

    def write_state(self, state: JobState) -> None:
        files.write_atomic(self.path / "job.json", files.pretty(asdict(state)), durable=False)

    @property
    def events(self) -> Path:
        """The path of events.jsonl. Ends an unfinished line of a killed run, so that the next event has its own."""
        path = self.path / "events.jsonl"
        if path.exists() and path.stat().st_size:
            with open(path, "rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        return path

    @property
    def worker_log(self) -> Path:
        return self.path / "worker.log"

    def step_path(self, step: PlannedStep) -> Path:
        return self.path / "steps" / step.folder

    def link_step(self, step: PlannedStep, entry: StoreEntry) -> None:
        """Make steps/NN-id of links to the entry's files."""
        (self.path / "steps").mkdir(exist_ok=True)
        _mirror(entry.path, entry.names, self.step_path(step))

    def set_output(self, entry: StoreEntry) -> Path:
        """Make output/ of links to the files of a checkpoint, and return it."""
        output = self.path / "output"
        _mirror(entry.out, [fact.path for fact in entry.record.files], output)
        return output

    @property
    def output(self) -> Path | None:
        path = self.path / "output"
        return path if path.is_dir() else None


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return plan.json. It differs between machines only where keys do."""
    return {
        "schema": 1,
        "recipe": plan.recipe.name,
        "key": plan.key,
        **({"matrix": dict(plan.recipe.matrix)} if plan.recipe.matrix else {}),
        "device": plan.device,
        "model": _model(plan),
        "data": {name: {"commit": data.commit, "digest": data.digest} for name, data in sorted(plan.data.items())},
        "steps": [step.public() for step in plan.steps],
    }


def _model(plan: Plan) -> dict[str, Any]:
    model = plan.model
    return {"source": model.source, "revision": model.revision, "commit": model.commit, "digest": model.digest}


def _contents(plan: Plan) -> dict[str, str]:
    return {"recipe.yaml": yaml_text.dump(plan.recipe.document), "plan.json": files.pretty(plan_document(plan))}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} where the file is missing or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mirror(source: Path, names: Iterable[str], target: Path) -> None:
    """Make `target` a folder of links to files of `source`; do nothing where it has all of them already."""
    names = list(names)
    if target.is_dir() and all(files.same_file(source / name, target / name) for name in names):
        return
    fresh = target.with_name(f".{target.name}.new")
    stale = target.with_name(f".{target.name}.old.new")
    for path in (fresh, stale):
        shutil.rmtree(path, ignore_errors=True)
    fresh.mkdir()
    for name in names:
        files.link(source / name, fresh / name)
    if target.exists():
        os.rename(target, stale)
    os.rename(fresh, target)
    shutil.rmtree(stale, ignore_errors=True)
