"""One step on a machine of a cluster, without a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.execute import node_step
from runner.execute.executor import Task
from runner.execute.job_run import JobRun
from runner.execute.node_step import NodeStep, Shipment
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job import locks
from runner.job.directory import JobDirectory
from runner.job.remote import Remote
from runner.job.store import Store
from runner.plan.types import Plan
from runner.progress.events import Event
from tests.execute.applying import until
from tests.execute.shipping import located

CHAIN: list[dict[str, Any]] = [
    {"id": "prune", "kind": "fake.layers", "params": {"layers": 3}},
    {"id": "quality", "kind": "fake.score", "params": {"loss": 0.5}, "produces": "metrics"},
]


def task(made: Plan, jobs: Path, index: int = 0) -> Task:
    store = Store(jobs / "store")
    store.prepare()
    run = JobRun(made, JobDirectory(jobs, made.job_id), store, ApplySettings("again", 1), Stopping(), [], {})
    entries = {step.id: entry for step in made.steps[:index] if (entry := store.entry(step.key)) is not None}
    return Task(run, made.steps[index], entries)


def events(shipped: Shipment, until_event: str = "") -> list[Event]:
    """Run a shipment to its end; its events."""
    step = NodeStep(shipped)
    assert step.begin() == socket.gethostname()
    found: list[Event] = []
    last = ("step_finished", "step_cached", "step_failed", "interrupted", node_step.DIED)
    until(lambda: found.extend(step.events(0.1)) or any(event["event"] in last for event in found))  # type: ignore[func-returns-value]
    step.close()
    return found


def test_a_step_commits_to_the_shared_store_and_sends_its_events(tmp_path: Path) -> None:
    made = located(CHAIN, tmp_path)
    found = events(node_step.shipment(task(made, tmp_path / "jobs"), None))
    assert [event["event"] for event in found] == ["step_started", "layer", "layer", "layer", "step_finished"]
    assert Store(tmp_path / "jobs" / "store").has(made.steps[0].key)
    again = events(node_step.shipment(task(made, tmp_path / "jobs", 1), None))
    assert again[-1]["metrics"] == {"loss": 0.5}


def test_machines_without_a_shared_folder_pull_inputs_and_push_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, url = located(CHAIN, tmp_path), f"file://{tmp_path}/remote"
    monkeypatch.setenv(node_step.NODE_STORE, str(tmp_path / "node-1"))
    events(node_step.shipment(task(made, tmp_path / "jobs"), url))
    monkeypatch.setenv(node_step.NODE_STORE, str(tmp_path / "node-2"))
    remote = Remote(url)
    entry = remote.pull(made.steps[0].key, Store(tmp_path / "jobs" / "store"))
    assert entry is not None
    found = events(node_step.shipment(task(made, tmp_path / "jobs", 1), url))
    assert found[-1]["event"] == "step_finished"
    assert remote.keys() == sorted(step.key for step in made.steps)
    assert Store(tmp_path / "node-2").has(made.steps[0].key), "the input was pulled"
    assert not Store(tmp_path / "jobs" / "store").has(made.steps[1].key)


def refused(shipped: Shipment) -> tuple[str, str, int]:
    (event,) = events(shipped)
    assert event["event"] == "step_failed"
    return event["error"], event["help"], event["exit_code"]


def test_what_a_machine_does_not_have_is_named(tmp_path: Path) -> None:
    here, made = socket.gethostname(), located(CHAIN, tmp_path)
    shipped = node_step.shipment(task(made, tmp_path / "jobs"), None)
    elsewhere = replace(shipped, request=replace(shipped.request, store="/nowhere/jobs/store"))
    assert refused(elsewhere) == (
        f"the store /nowhere/jobs/store is not on {here}",
        "use a jobs folder that all machines share (`--jobs`), or a remote store (`--remote`)",
        1,
    )
    (tmp_path / "model" / "adapter").mkdir()
    (tmp_path / "model" / "adapter" / "adapter_config.json").write_text("{}")
    assert refused(shipped)[0] == (
        f"{tmp_path}/model holds other files on {here} than on the machine that planned the step"
    )
    shutil.rmtree(tmp_path / "model" / "adapter")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "other"}')
    assert refused(shipped) == (
        f"{tmp_path}/model holds other files on {here} than on the machine that planned the step",
        "put it where all machines see the same",
        4,
    )
    shutil.rmtree(tmp_path / "model")
    assert refused(shipped) == (f"{tmp_path}/model is not on {here}", "put it where all machines see it", 4)


def test_a_worker_that_dies_is_reported_and_the_step_continues(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"layer": 2, "do": "hang"}))
    made = located([{**CHAIN[0], "params": {"layers": 3, "control": str(control)}}], tmp_path)
    shipped = node_step.shipment(task(made, tmp_path / "jobs"), None)
    step = NodeStep(shipped)
    step.begin()
    until(control.with_suffix(".reached").exists)
    holder = locks.holder(tmp_path / "jobs" / "store" / ".locks" / f"{made.steps[0].key}.lock")
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    found: list[Event] = []
    until(lambda: found.extend(step.events(0.1)) or any(e["event"] == node_step.DIED for e in found))  # type: ignore[func-returns-value]
    assert found[-1]["error"].startswith("the worker process was killed (SIGKILL)")
    step.close()
    control.unlink()
    assert next(e for e in events(shipped) if e["event"] == "step_started")["resumed_at"] == 2
