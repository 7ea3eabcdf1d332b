"""The scheduler alone, with an executor that starts no process: what it asks, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.errors import Interrupted, MachineError, StoreError
from runner.execute.executor import Executor
from runner.execute.job_run import JobRun
from runner.execute.scheduler import Scheduler
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job.directory import JobDirectory
from runner.job.entries import StoreEntry
from runner.job.records import Record
from runner.job.store import Store
from runner.plan.types import PlannedStep
from tests.execute.applying import Kept
from tests.job.plans import plan

CHAIN: list[dict[str, Any]] = [
    {"id": "prune", "kind": "fake.layers"},
    {"id": "quality", "kind": "fake.score", "produces": "metrics", "gates": {"loss": {"max": 1.0}}},
]


class Answering:
    """An executor that answers with `codes`, by step id, and commits a result with `metrics` where the code is 0."""

    def __init__(self, store: Store, codes: Mapping[str, int], metrics: Mapping[str, float]) -> None:
        self.store, self.codes, self.metrics = store, codes, metrics
        self.asked: list[tuple[str, list[str]]] = []
        self.memory = 0

    def compute(self, step: PlannedStep, entries: Mapping[str, StoreEntry]) -> int:
        self.asked.append((step.id, list(entries)))
        code = self.codes.get(step.id, 0)
        if code == 0:
            stage = self.store.stage(step.key)
            if step.produces != "metrics":
                (stage.out / "a.bin").write_bytes(step.id.encode())
            self.store.commit(stage, _record(step, entries, self.metrics))
        return code

    def close(self) -> None: ...


def _record(step: PlannedStep, entries: Mapping[str, StoreEntry], metrics: Mapping[str, float]) -> Record:
    inputs = {name: entries[id].record.digest for name, id in step.inputs.items() if id in entries}
    return Record(
        key=step.key, key_inputs=step.key_inputs, kind=step.kind, kind_version=1, id=step.id, recipe="demo",
        seconds=0.0, memory=0, metrics=metrics, details={}, artifact_type=step.produces, inputs=inputs, environment={},
    )  # fmt: skip


def scheduled(
    tmp_path: Path, codes: Mapping[str, int] | None = None, loss: float = 0.5
) -> tuple[int, Answering, Kept, Stopping]:
    """The exit code, what the executor was asked, the events, and the means of stopping."""
    store = Store(tmp_path / "store")
    store.prepare()
    made, kept, stopping = plan(CHAIN), Kept(), Stopping()
    run = JobRun(made, JobDirectory.create(tmp_path, made), store, ApplySettings("again"), stopping, [kept], {})
    answering = Answering(store, codes or {}, {"loss": loss})
    executor: Executor = answering
    return Scheduler(run, executor).work(), answering, kept, stopping


def test_steps_are_computed_in_order_from_earlier_results_and_once(tmp_path: Path) -> None:
    code, executor, kept, _ = scheduled(tmp_path)
    assert (code, executor.asked) == (0, [("prune", []), ("quality", ["prune"])])
    assert kept.names() == ["gate"]
    code, executor, kept, _ = scheduled(tmp_path)
    assert (code, executor.asked) == (0, [])
    assert kept.names() == ["step_cached", "step_cached", "gate"]


def test_a_failure_ends_the_run_with_its_code(tmp_path: Path) -> None:
    code, executor, kept, _ = scheduled(tmp_path, {"prune": MachineError.exit_code})
    assert (code, executor.asked, kept.names()) == (4, [("prune", [])], [])


def test_a_stop_of_the_executor_says_how_to_go_on(tmp_path: Path) -> None:
    code, _, kept, _ = scheduled(tmp_path, {"quality": Interrupted.exit_code})
    assert (code, kept.one("interrupted")["step"], kept.one("interrupted")["resume"]) == (75, 1, "again")


def test_a_missed_gate_has_a_code_of_its_own(tmp_path: Path) -> None:
    code, _, kept, _ = scheduled(tmp_path, loss=2.0)
    assert (code, kept.one("gate")["passed"]) == (3, False)


def test_an_executor_that_says_done_and_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answering, "compute", lambda self, step, entries: 0)
    with pytest.raises(StoreError) as caught:
        scheduled(tmp_path)
    assert caught.value.message == "the result of `prune` left the store"
