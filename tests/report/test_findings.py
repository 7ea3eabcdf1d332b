from __future__ import annotations

from pathlib import Path

import pytest

from runner.report import findings, job_report
from runner.report.findings import Change, Measured
from tests.report.jobs import METRICS, gate, made


def test_a_job_that_is_done(tmp_path: Path) -> None:
    plan = made(tmp_path, events=[gate(4, "quality", 11.0, 12.0)])
    found = findings.verdict(job_report.read(tmp_path, plan.job_id))
    assert (found.level, found.word) == ("good", "done")
    assert found.text == "Its one gate passed. perplexity went from 10 to 11 (+10 %)."


def test_a_missed_gate_says_by_how_much(tmp_path: Path) -> None:
    plan = made(tmp_path, "gate-missed", events=[gate(4, "quality", 11.0, 10.5)])
    found = findings.verdict(job_report.read(tmp_path, plan.job_id))
    assert (found.level, found.word) == ("bad", "gate missed")
    assert found.text == "Step quality: `perplexity` is 11, 0.5 above its limit 10.5. Everything is kept."


def test_a_failed_step(tmp_path: Path) -> None:
    failed = {"event": "step_failed", "time": 3, "step": 1, "id": "prune", "kind": "x", "error": "no", "exit_code": 1}
    plan = made(tmp_path, "failed", done=1, events=[failed])
    found = findings.verdict(job_report.read(tmp_path, plan.job_id))
    assert (found.level, found.text) == ("bad", "Step prune failed: no")


def test_a_killed_run_counts_what_is_kept(tmp_path: Path) -> None:
    plan = made(tmp_path, "running", done=2)  # nobody holds its lock
    report = job_report.read(tmp_path, plan.job_id)
    found = findings.verdict(report)
    assert (found.level, found.word) == ("warn", "interrupted")
    assert found.text == "2 of 5 steps are finished and kept; the same command continues from there."
    assert report.resume == "runner apply demo.yaml"
    assert [step.state for step in report.steps] == ["done", "done", "pending", "pending", "pending"]


def test_quality_before_and_after_each_step(tmp_path: Path) -> None:
    plan = made(tmp_path)
    report = job_report.read(tmp_path, plan.job_id)
    (series,) = findings.series(report)
    assert series.points == (Measured("baseline", "model", 10.0), Measured("quality", "gptq", 11.0))
    changes = {step.id: findings.changes([series], step) for step in report.steps}
    assert changes["gptq"] == (Change("perplexity", None, 11.0),)
    assert changes["prune"] == changes["quality"] == ()


def test_other_data_is_another_series(tmp_path: Path) -> None:
    steps = [
        {"id": "a", "kind": "evaluate.perplexity", "produces": "metrics", "params": {"data": "one"}},
        {"id": "b", "kind": "evaluate.perplexity", "produces": "metrics", "params": {"data": "two"}},
    ]
    plan = made(tmp_path, steps=steps, metrics={"a": METRICS["baseline"], "b": METRICS["quality"]})
    found = findings.series(job_report.read(tmp_path, plan.job_id))
    assert [one.label for one in found] == ["perplexity (a)", "perplexity (b)"]


def test_the_forecast_is_that_of_the_run_that_computed(tmp_path: Path) -> None:
    again = {
        "event": "job_started",
        "time": 9,
        "job": "x",
        "steps": [{"index": 0, "id": "b", "kind": "k", "state": "cached"}],
    }
    plan = made(tmp_path, events=[again])
    first, second, *_ = job_report.read(tmp_path, plan.job_id).steps
    assert first.forecast == job_report.Forecast(600_000_000, 5.0)
    assert second.forecast is None


@pytest.mark.parametrize(
    ("before", "after", "text"), [(8.0, 8.264, "+3.3 %"), (4.0, 1.6, "−60 %"), (2.0, 2.0, "±0.0 %"), (0.0, 1.0, "")]
)
def test_percent(before: float, after: float, text: str) -> None:
    assert findings.percent(before, after) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(100, 40, "2.5 times smaller"), (40, 100, "2.5 times larger"), (100, 101, "as large as before"), (None, 1, "")],
)
def test_times_smaller(before: int | None, after: int, text: str) -> None:
    assert findings.times_smaller(before, after) == text


@pytest.mark.parametrize("metric", ["top1_agreement", "accuracy", "acc", "tokens_per_second", "f1", "stdlib/acc"])
def test_more_is_better(metric: str) -> None:
    assert findings.higher_is_better(metric)


@pytest.mark.parametrize("metric", ["perplexity", "kl", "latency_seconds", "error", "pace"])
def test_less_is_better(metric: str) -> None:
    assert not findings.higher_is_better(metric)
