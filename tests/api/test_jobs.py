from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import runner
from runner.report.html import publish
from tests.commands.conftest import KINDS, RECIPE


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jobs folder in which toy.yaml was applied."""
    folder = tmp_path_factory.mktemp("applied")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RUNNER_STEPS_PATH", str(KINDS))
        (folder / "toy.yaml").write_text(RECIPE, encoding="utf-8")
        runner.apply(runner.plan(runner.load("toy.yaml")))
    return folder / "jobs"


@pytest.fixture
def job(applied: Path, folder: Path) -> runner.Job:
    """That job, in the working folder."""
    shutil.copytree(applied, folder / "jobs")
    return next(iter(runner.jobs()))


def test_a_job_is_found_by_id_beginning_and_folder(job: runner.Job, folder: Path) -> None:
    names: list[str | Path] = [job.id, "toy-", job.path, str(job.path), folder / "jobs" / job.id]
    assert {runner.Job(name).id for name in names} == {job.id}
    assert runner.Job(folder / "jobs" / job.id, jobs="elsewhere").path == folder / "jobs" / job.id
    assert repr(runner.Job("toy-")) == f"<runner.Job {job.id}: done>"
    with pytest.raises(runner.UsageError, match="there is no job `tox` in jobs"):
        runner.Job("tox")


def test_a_job_tells_what_it_did(job: runner.Job) -> None:
    assert [step.state for step in job.steps] == ["done"] * 3
    assert list(job.records) == ["before", "shrink", "after"]
    assert job.step("shrink") == job.steps[1]
    with pytest.raises(runner.UsageError) as caught:
        job.step("srink")
    assert caught.value.message == f"job `{job.id}` has no step `srink`"
    assert caught.value.help == "its steps are `before`, `shrink` and `after`"
    assert job.records["shrink"].digest == job.steps[1].digest
    assert job.output == job.path / "output"
    assert [gate.passed for gate in job.gates] == [True]
    assert job.report.recipe == job.summary.recipe == "toy"
    assert [check.reason for check in job.verify() if check.reason] == []


def test_a_changed_record_is_left_out_and_named(job: runner.Job) -> None:
    path = job.path / "steps" / "02-shrink" / "record.json"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    path.write_text(text.replace('"kind": "toy.shrink"', '"kind": "toy.shrunk"'), encoding="utf-8")
    assert list(job.records) == ["before", "after"]
    assert any(check.reason for check in job.verify())


def test_a_report_is_written_where_it_is_asked(job: runner.Job, folder: Path) -> None:
    assert job.write_report() == job.path / publish.HTML
    assert json.loads((job.path / publish.JSON).read_text(encoding="utf-8"))["id"] == job.id
    assert job.write_report(folder / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_jobs_are_listed_compared_and_removed(job: runner.Job, folder: Path) -> None:
    other = runner.apply(runner.plan(runner.load("toy.yaml", sets={"points": 6})))
    found = runner.jobs()
    assert [one.id for one in found] == [job.id, other.id] or job.summary.started == other.summary.started
    table = runner.compare(found)
    assert str(table).splitlines()[0].split() == ["job", "points", "size", "points", "time", "memory", "status"]
    assert table.params == ("params.points",)
    assert {row.id: row.params["params.points"] for row in table.rows} == {job.id: 5, other.id: 6}
    with pytest.raises(runner.UsageError, match="none of these jobs measured `speed`"):
        runner.compare(found, "speed")
    assert job.remove() > 0
    assert [one.id for one in runner.jobs()] == [other.id]
    shutil.rmtree(folder / "jobs")
    assert runner.jobs() == []
