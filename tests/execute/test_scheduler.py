"""The scheduler alone, with an executor that starts no process: what it asks, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.errors import Interrupted, MachineError, StoreError
from runner.execute.executor import Ended, Executor, Reports, Task
from runner.execute.job_run import JobRun
from runner.execute.job_session import JobSession
from runner.execute.job_steps import JobSteps
from runner.execute.scheduler import Scheduler
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job.directory import JobDirectory
from runner.job.entries import StoreEntry
from runner.job.records import Record
from runner.job.store import Store
from runner.plan.types import Plan, PlannedStep
from runner.progress.events import make
from tests.execute.applying import Kept
from tests.job.plans import plan

CHAIN: list[dict[str, Any]] = [
    {"id": "prune", "kind": "fake.layers"},
    {"id": "quality", "kind": "fake.score", "produces": "metrics", "gates": {"loss": {"max": 1.0}}},
]


class Answering:
    """An executor that answers with `codes`, by step id, and commits a result with `metrics` where the code is 0.

    `seats` tasks may be open at once; the oldest ends whenever the scheduler looks for a report.
    """

    def __init__(
        self, reports: Reports, store: Store, codes: Mapping[str, int], metrics: Mapping[str, float], seats: int = 1
    ) -> None:
        self.reports, self.store, self.codes, self.metrics, self.seats = reports, store, codes, metrics, seats
        self.asked: list[tuple[str, list[str]]] = []
        self.most = 0
        self._open: list[Task] = []

    def is_full(self) -> bool:
        return len(self._open) >= self.seats

    def has_room(self, task: Task) -> bool:
        return not self.is_full()

    def start(self, task: Task) -> None:
        step = task.step
        self.asked.append((step.id, list(task.entries)))
        self._open.append(task)
        self.most = max(self.most, len(self._open))
        code = self.codes.get(step.id, 0)
        if code == 0:
            stage = self.store.stage(step.key)
            if step.produces != "metrics":
                (stage.out / "a.bin").write_bytes(step.id.encode())
            self.store.commit(stage, _record(step, task.entries, self.metrics))
        elif code != 75:
            self.reports.put((task, make("step_failed", step=step.index, id=step.id, error="e", exit_code=code)))
        self.reports.put((task, Ended(code)))

    def release(self, task: Task) -> None:
        self._open.remove(task)

    def stop(self, tasks: Iterable[Task] | None = None) -> None: ...
    def kill(self) -> None: ...
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
    (job,), answering, kept, stopping = several(tmp_path, [plan(CHAIN)], codes, loss)
    if job.error is not None:
        raise job.error
    return job.code, answering, kept[0], stopping


def several(
    tmp_path: Path, plans: list[Plan], codes: Mapping[str, int] | None = None, loss: float = 0.5, seats: int = 1,
    **options: Any,
) -> tuple[list[JobSteps], Answering, list[Kept], Stopping]:  # fmt: skip
    store = Store(tmp_path / "store")
    store.prepare()
    stopping, reports = Stopping(), Reports()
    executor = Answering(reports, store, codes or {}, {"loss": loss}, seats)
    kept = [Kept() for _ in plans]
    jobs = []
    for made, sink in zip(plans, kept, strict=True):
        directory = JobDirectory(tmp_path, made.job_id)
        run = JobRun(made, directory, store, ApplySettings("again"), stopping, [sink], {})
        jobs.append(JobSteps(JobSession(run, None)))
    checked: Executor = executor
    Scheduler(jobs, checked, reports, stopping, **options).work()
    return jobs, executor, kept, stopping


def test_steps_are_computed_in_order_from_earlier_results_and_once(tmp_path: Path) -> None:
    code, executor, kept, _ = scheduled(tmp_path)
    assert (code, executor.asked) == (0, [("prune", []), ("quality", ["prune"])])
    assert kept.names() == ["job_started", "gate", "job_finished"]
    code, executor, kept, _ = scheduled(tmp_path)
    assert (code, executor.asked) == (0, [])
    assert kept.names() == ["job_started", "step_cached", "step_cached", "gate", "job_finished"]


def test_a_failure_ends_the_run_with_its_code(tmp_path: Path) -> None:
    code, executor, kept, _ = scheduled(tmp_path, {"prune": MachineError.exit_code})
    assert (code, executor.asked, kept.names()) == (
        4, [("prune", [])], ["job_started", "step_failed", "job_finished"],
    )  # fmt: skip


def test_a_stop_of_the_executor_says_how_to_go_on(tmp_path: Path) -> None:
    code, _, kept, _ = scheduled(tmp_path, {"quality": Interrupted.exit_code})
    assert (code, kept.one("interrupted")["step"], kept.one("interrupted")["resume"]) == (75, 1, "again")


def test_a_missed_gate_has_a_code_of_its_own(tmp_path: Path) -> None:
    code, _, kept, _ = scheduled(tmp_path, loss=2.0)
    assert (code, kept.one("gate")["passed"]) == (3, False)


def test_an_executor_that_says_done_and_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "commit", lambda self, stage, record: None)
    with pytest.raises(StoreError) as caught:
        scheduled(tmp_path)
    assert caught.value.message == "the result of `prune` left the store"


def forked(name: str, bits: int) -> Plan:
    """A job whose first step is that of every other, with two that depend on it, and one on both by its gate."""
    gate = {"loss": {"max_ratio_to": "first", "value": 2.0}}
    steps: list[dict[str, Any]] = [
        {"id": "prune", "kind": "fake.layers"},
        {"id": "first", "kind": "fake.score", "params": {"n": bits}, "produces": "metrics"},
        {"id": "second", "kind": "fake.score", "params": {"m": bits}, "produces": "metrics", "gates": gate},
    ]
    return plan(steps, name=name)


def test_a_shared_step_runs_once_and_all_seats_are_used(tmp_path: Path) -> None:
    plans = [forked(f"job{bits}", bits) for bits in (2, 3, 4)]
    jobs, executor, kept, _ = several(tmp_path, plans, seats=3)
    assert [job.code for job in jobs] == [0, 0, 0]
    assert [id for id, _ in executor.asked] == ["prune", *["first"] * 3, *["second"] * 3]
    assert executor.most == 3
    assert [sink.named("step_cached")[0]["id"] for sink in kept[1:]] == ["prune", "prune"]
    assert kept[1].named("waiting") == [
        {**kept[1].one("waiting"), "step": 0, "holder": f"the same step of {plans[0].job_id}"}
    ]


def test_a_gate_waits_for_the_step_that_it_compares_with(tmp_path: Path) -> None:
    (job,), executor, kept, _ = several(tmp_path, [forked("job", 2)], seats=3)
    assert [id for id, _ in executor.asked] == ["prune", "first", "second"]
    assert (job.code, kept[0].one("gate")["passed"], executor.most) == (0, True, 1)


def test_a_failed_job_ends_no_other_and_its_step_is_not_tried_again(tmp_path: Path) -> None:
    good = plan(CHAIN[1:], name="good")
    jobs, executor, kept, _ = several(tmp_path, [plan(CHAIN), plan(CHAIN, name="same"), good], {"prune": 1})
    assert [job.code for job in jobs] == [1, 1, 0]
    assert [id for id, _ in executor.asked] == ["prune", "quality"]
    assert [sink.named("step_failed")[0]["error"] for sink in kept[:2]] == ["e", "e"]


def test_without_keep_going_the_first_failure_ends_the_others(tmp_path: Path) -> None:
    good = plan(CHAIN[1:], name="good")
    jobs, executor, kept, _ = several(tmp_path, [plan(CHAIN), good], {"prune": 1}, keep_going=False)
    assert [(job.code, job.session.was_opened) for job in jobs] == [(1, True), (75, False)]
    assert ([id for id, _ in executor.asked], kept[1].events) == (["prune"], [])


def test_the_same_plan_twice_is_applied_once_and_then_taken_from_the_store(tmp_path: Path) -> None:
    jobs, executor, kept, _ = several(tmp_path, [plan(CHAIN), plan(CHAIN)], seats=2)
    assert [job.code for job in jobs] == [0, 0]
    assert len(executor.asked) == 2
    assert len(kept[1].named("step_cached")) == 2
