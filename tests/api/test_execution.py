from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import runner
from runner.progress.events import Event


def planned(**sets: object) -> runner.JobPlan:
    return runner.plan(runner.load("toy.yaml", sets={name: str(value).lower() for name, value in sets.items()}))


def test_a_job_is_done_and_its_events_were_seen() -> None:
    seen: list[Event] = []
    job = runner.apply(planned(), on_event=seen.append, threads=1)
    assert (job.status, job.exit_code) == ("done", 0)
    assert list(job.metrics) == ["before", "shrink", "after"]
    names = [event["event"] for event in seen]
    assert (names[0], names[-1], names.count("step_finished")) == ("job_started", "job_finished", 3)
    assert seen == job.events
    assert job.metrics["after"] == {"points": 5.0}
    assert planned().states == {"before": "cached", "shrink": "cached", "after": "cached"}


def test_a_missed_gate_raises_and_leaves_the_job() -> None:
    plan = planned(points=7)
    with pytest.raises(runner.GateFailed) as caught:
        runner.apply(plan)
    assert caught.value.message == ("step `after`: gate missed: `points` is 7, 1 above its limit 6 (1.5 × `before` 4)")
    assert caught.value.help == f"`runner report {plan.job_id}` shows what its steps did"
    job = runner.Job(plan.job_id)
    assert [(gate.step, gate.metric, gate.value, gate.limit, gate.passed) for gate in job.gates] == [
        ("after", "points", 7.0, 6.0, False)
    ]
    assert (job.status, job.exit_code) == ("gate-missed", 3)


@pytest.mark.nightly
def test_without_check_the_job_says_how_it_ended() -> None:
    job = runner.apply(planned(points=7), check=False)
    assert (job.status, [gate.passed for gate in job.gates]) == ("gate-missed", [False])


def test_a_failed_step_raises_what_it_said() -> None:
    plan = planned(fail=True)
    with pytest.raises(runner.StepFailed, match=r"^step `shrink` failed: ") as caught:
        runner.apply(plan)
    assert str(runner.Job(plan.job_id).steps[1].failure["error"]) in caught.value.message  # type: ignore[index]
    assert runner.Job(plan.job_id).status == "failed"


def test_a_plan_that_another_process_applies_is_not_waited_for(folder: Path) -> None:
    from runner.job.directory import JobDirectory

    plan = planned()
    lock = JobDirectory.create(Path("jobs"), plan.plan).lock("other")
    assert lock.acquire(wait=False)
    try:
        with pytest.raises(runner.Interrupted, match="another apply of this plan is running"):
            runner.apply(plan, wait=False)
    finally:
        lock.release()


def test_a_time_limit_stops_at_a_safe_point() -> None:
    plan = planned()
    with pytest.raises(runner.Interrupted) as caught:
        runner.apply(plan, timeout=0.001)
    assert caught.value.message == f"job `{plan.job_id}` stopped before its end"
    assert runner.apply(plan).status == "done"


def test_what_a_callback_raises_ends_the_job_and_is_raised() -> None:
    plan, seen = planned(), list[str]()

    def stop(event: Event) -> None:
        seen.append(event["event"])
        if event["event"] == "step_finished":
            raise LookupError(event["id"])

    with pytest.raises(LookupError, match="before"):
        runner.apply(plan, on_event=stop)
    assert seen[-1] == "step_finished"
    job = runner.Job(plan.job_id)
    assert (job.status, job.exit_code, job.summary.holder) == ("failed", 1, None)
    assert runner.apply(plan).status == "done"


def test_a_time_limit_is_refused_where_it_could_not_act() -> None:
    plan, raised = planned(), list[runner.RunnerError]()

    def limited() -> None:
        try:
            runner.apply(plan, timeout=1)
        except runner.RunnerError as error:
            raised.append(error)

    thread = threading.Thread(target=limited)
    thread.start()
    thread.join()
    assert [error.message for error in raised] == ["`timeout` works only in the main thread, where signals arrive"]


def test_trust_of_one_plan_is_none_of_the_next() -> None:
    recipe = runner.load("toy.yaml")
    trusted, plain = runner.plan(recipe, trust_remote_code=True), runner.plan(recipe)
    assert (trusted.trust_remote_code, plain.trust_remote_code) == (True, False)
    runner.apply(trusted)
    assert os.environ.get("RUNNER_TRUST_REMOTE_CODE") == "1"
    runner.apply(plain)
    assert "RUNNER_TRUST_REMOTE_CODE" not in os.environ
