"""The job directory, its documents against their schemas, and the list of jobs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from runner.errors import UsageError
from runner.job import environment, files, listing
from runner.job.directory import JobDirectory, JobState, plan_document
from runner.job.records import Record
from runner.job.store import Store
from runner.plan import lock_file
from runner.plan.types import Plan
from tests.job.plans import plan

SCHEMAS = Path(__file__).parent.parent.parent / "schemas" / "job"
STEPS: list[dict[str, Any]] = [{"id": "prune", "kind": "fake.a"}, {"id": "gptq", "kind": "fake.b"}]


def valid(document: Any, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)


def commit(root: Path, plan: Plan, index: int, content: str = "bytes") -> Any:
    store, step = Store(root / "store"), plan.steps[index]
    store.prepare()
    stage = store.stage(step.key)
    (stage.out / "model.bin").write_text(content)
    return store.commit(
        stage,
        Record(
            key=step.key, key_inputs=step.key_inputs, kind=step.kind, kind_version=1, id=step.id, recipe="demo",
            seconds=1.0, memory=1, metrics={"quality": 1.0}, details={}, artifact_type="checkpoint", inputs={},
            environment=environment.facts("cpu", 2),
        ),
    )  # fmt: skip


def state(status: str, started: str = "2026-01-01T00:00:00Z") -> JobState:
    return JobState(status, 0, started, "2026-01-01T00:01:00Z", 60.0, 1024, "runner apply a.yaml", os.getpid())


def test_documents_meet_their_schemas(tmp_path: Path) -> None:
    made = plan(STEPS)
    facts = environment.facts("cpu", 2)
    directory = JobDirectory.create(tmp_path, made)
    directory.write_environment(made, facts)
    directory.write_state(state("done"))
    valid(json.loads((directory.path / "plan.json").read_text()), "plan")
    valid(json.loads((directory.path / "environment.json").read_text()), "environment")
    valid(json.loads((directory.path / "job.json").read_text()), "job")
    lock = yaml.safe_load((directory.path / "recipe.lock").read_text())
    valid(lock, "lock")
    assert lock == lock_file.lock_plans([made])
    valid(json.loads((commit(tmp_path, made, 0).path / "record.json").read_text()), "record")


def test_equal_plans_write_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        JobDirectory.create(tmp_path / name, plan(STEPS))
    one, two = ((tmp_path / name / plan(STEPS).job_id / "plan.json").read_bytes() for name in "ab")
    assert one == two == files.pretty(plan_document(plan(STEPS))).encode()


def test_a_directory_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            JobDirectory.create(tmp_path, plan(STEPS))
    assert not (tmp_path / plan(STEPS).job_id).exists()
    assert listing.jobs(tmp_path) == []
    path = JobDirectory.create(tmp_path, plan(STEPS)).path
    assert sorted(p.name for p in path.iterdir()) == ["plan.json", "recipe.yaml"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_somebody_elses_directory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two applies make the directory at once: the later rename finds it there."""
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", real)
        Path(target).mkdir()
        (Path(target) / "theirs").touch()
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    directory = JobDirectory.create(tmp_path, plan(STEPS))
    assert [p.name for p in tmp_path.iterdir()] == [directory.id]
    directory.refresh(plan(STEPS))
    assert sorted(p.name for p in directory.path.iterdir()) == ["plan.json", "recipe.yaml", "theirs"]


def test_output_changes_as_a_whole_and_keeps_what_was_added(tmp_path: Path) -> None:
    made = plan(STEPS)
    directory = JobDirectory.create(tmp_path, made)
    first, second = commit(tmp_path, made, 0, "one"), commit(tmp_path, made, 1, "two")
    assert directory.output is None
    assert directory.set_output(first) == directory.path / "output"
    (directory.path / "output" / "notes.txt").write_text("mine")
    directory.set_output(first)
    assert (directory.path / "output" / "notes.txt").exists()
    directory.set_output(second)
    assert (directory.path / "output" / "model.bin").read_text() == "two"
    assert sorted(p.name for p in directory.path.iterdir()) == ["output", "plan.json", "recipe.yaml"]


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    made = plan(STEPS)
    directory = JobDirectory.create(tmp_path, made)
    for name in (".output.new", "steps/.01-prune.new", "steps/.01-prune.old.new"):
        (directory.path / name).mkdir(parents=True)
    directory.refresh(made)
    assert not list(directory.path.glob("**/.*.new"))


def test_jobs_are_listed_found_and_removed(tmp_path: Path) -> None:
    one, two = plan(STEPS, "llama"), plan(STEPS[:1], "mistral")
    for made, at in ((two, "2026-01-01T00:00:00Z"), (one, "2026-01-02T00:00:00Z")):
        JobDirectory.create(tmp_path, made).write_state(state("done", at))
    entries = [commit(tmp_path, one, 0), commit(tmp_path, one, 1)]
    JobDirectory(tmp_path, one.job_id).link_step(one.steps[0], entries[0])
    assert [(job.id, job.recipe, job.status, job.done, job.steps) for job in listing.jobs(tmp_path)] == [
        (two.job_id, "mistral", "done", 1, 1), (one.job_id, "llama", "done", 2, 2),
    ]  # fmt: skip
    assert listing.find(tmp_path, "lla") == one.job_id
    assert listing.find(tmp_path, str(tmp_path / one.job_id)) == one.job_id

    assert listing.remove(tmp_path, "llama") > 0
    assert [job.id for job in listing.jobs(tmp_path)] == [two.job_id]
    assert entries[0].path.exists(), "another job uses it"
    assert not entries[1].path.exists()
    listing.remove(tmp_path, "mistral", entries=False)
    assert entries[0].path.exists()
    assert listing.jobs(tmp_path) == []


def test_an_unknown_job_is_told_with_the_nearest(tmp_path: Path) -> None:
    for name in ("llama-a", "llama-b"):
        JobDirectory.create(tmp_path, plan(STEPS, name))
    a, b = (plan(STEPS, name).job_id for name in ("llama-a", "llama-b"))
    with pytest.raises(UsageError) as caught:
        listing.load(tmp_path, "llama")
    assert caught.value.render() == f"error: `llama` may be `{a}` or `{b}`\nhelp: write more of the id"
    with pytest.raises(UsageError) as caught:
        listing.load(tmp_path, "lama-a" + a[7:])
    assert caught.value.message == f"there is no job `lama-a{a[7:]}` in {tmp_path}"
    assert caught.value.help is not None
    assert caught.value.help.startswith(f"did you mean `{a}`")
    with pytest.raises(UsageError) as caught:
        listing.load(tmp_path / "none", "zzz")
    assert caught.value.help == "`runner jobs list` shows them all"


def test_states_of_a_job(tmp_path: Path) -> None:
    made = plan(STEPS)
    directory = JobDirectory.create(tmp_path, made)
    assert listing.load(tmp_path, made.job_id).status == "new"
    directory.write_state(state("running"))
    with directory.lock("runner apply a.yaml"):
        running = listing.load(tmp_path, made.job_id)
        assert running.status == "running"
        assert running.holder is not None
        with pytest.raises(UsageError) as caught:
            listing.remove(tmp_path, made.job_id)
        assert caught.value.message == f"job `{made.job_id}` is being applied by {running.holder}"
    assert listing.load(tmp_path, made.job_id).status == "interrupted"
    (directory.path / "job.json").write_text('{"status": "do')
    assert listing.load(tmp_path, made.job_id).status == "new"


def test_the_environment_is_read_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = environment.facts("cpu", 2)
    assert facts["packages"]["pyyaml"] == yaml.__version__
    assert list(facts["packages"]) == sorted(facts["packages"])
    assert facts["cpu"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment.default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert environment.default_threads() == len(os.sched_getaffinity(0))


def test_a_state_is_plain_data() -> None:
    valid(asdict(state("gate-missed")), "job")
