from __future__ import annotations

import json
from pathlib import Path

import pytest

import runner
from runner.cli import main


def test_a_plan_has_the_forecast_of_every_step(folder: Path) -> None:
    plan = runner.plan(runner.load("toy.yaml"))
    assert plan.states == {"before": "run", "shrink": "run", "after": "run"}
    assert [forecast.step.kind for forecast in plan.steps] == ["toy.score", "toy.shrink", "toy.score"]
    assert plan.seconds == sum(forecast.cost.seconds for forecast in plan.steps) > 0
    assert plan.memory == max(forecast.cost.memory for forecast in plan.steps) > 0
    assert repr(plan) == f"<runner.JobPlan {plan.job_id}: 3 to run>"
    assert repr(plan.plan.recipe) == "<Recipe toy: before, shrink, after>"
    assert (plan.jobs, plan.job_id[:4], plan.notes) == (Path("jobs"), "toy-", ())
    assert [path.name for path in (folder / "jobs").iterdir()] == ["store"]  # with the digests alone


def test_a_plan_is_what_the_command_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    plan = runner.plan(runner.load("toy.yaml"), jobs="elsewhere")
    document = plan.document()
    assert main(["plan", "toy.yaml", "--jobs", "elsewhere", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for one in (document, printed):
        del one["machine"]["memory_available"]
    assert document == printed
    assert str(plan).splitlines()[0] == plan.job_id
    assert [line.split()[1] for line in str(plan).splitlines() if line.lstrip()[:1].isdigit()][:1] == ["before"]


def test_the_jobs_folder_may_be_no_file(folder: Path) -> None:
    (folder / "jobs").write_text("")
    with pytest.raises(runner.UsageError) as caught:
        runner.plan(runner.load("toy.yaml"))
    assert caught.value.message == "the jobs folder jobs is a file"


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(runner.MachineError):
        runner.plan(runner.load("toy.yaml"), device="cuda")
