"""Applying plans of fake kinds, in this process or in one that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.execute.application import apply
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job.store import Store
from runner.progress.events import Event
from tests.job.plans import plan

KINDS = Path(__file__).parent / "kinds"
ROOT = Path(__file__).parent.parent.parent
Steps = Sequence[Mapping[str, Any]]


class Kept:
    """A sink that keeps events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None: ...

    def named(self, *names: str) -> list[Event]:
        return [event for event in self.events if event["event"] in names]

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def one(self, name: str) -> Event:
        (event,) = self.named(name)
        return event


COMMAND = "runner apply demo.yaml"


def applied(jobs: Path, steps: Steps, stopping: Stopping | None = None, **options: Any) -> tuple[int, Kept]:
    """Apply here; the exit code and the events. `options` are those of ApplySettings."""
    kept = Kept()
    settings = ApplySettings(**{"command": COMMAND, "threads": 1, **options})
    code = apply(plan(steps), None, settings, jobs_root=jobs, sinks=[kept], stopping=stopping)
    return code, kept


def start(jobs: Path, steps: Steps, *options: str) -> subprocess.Popen[str]:
    """Apply in a process of its own; its stdout are the events."""
    file = jobs.with_name("steps.json")
    file.write_text(json.dumps(steps))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.execute.process", str(jobs), str(file), *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RUNNER_STEPS_PATH": str(KINDS)},
    )  # fmt: skip


def digests(jobs: Path, steps: Steps) -> list[str]:
    """The digest of every step's result; "" for one that is not in the store."""
    store = Store(jobs / "store")
    entries = [store.entry(step.key) for step in plan(steps).steps]
    return [entry.record.digest if entry else "" for entry in entries]


def until(true: Callable[[], bool]) -> None:
    """Wait for something that must happen. The limit only ends a broken test."""
    limit = time.monotonic() + 120
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError
        time.sleep(0.005)
