"""Applying: what runs, what is cached, what is said, what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runner.errors import MachineError
from runner.job.directory import JobDirectory
from runner.job.store import Store
from tests.execute.applying import applied, digests, start
from tests.job.plans import plan

CHAIN: list[dict[str, Any]] = [
    {"id": "prune", "kind": "fake.layers", "params": {"layers": 3}},
    {"id": "gptq", "kind": "fake.layers", "params": {"layers": 2}},
    {"id": "quality", "kind": "fake.score", "params": {"perplexity": 15.5}, "produces": "metrics"},
]


def job(jobs: Path, steps: list[dict[str, Any]]) -> JobDirectory:
    return JobDirectory(jobs, plan(steps).job_id)


def test_every_step_runs_once_and_is_cached_after(tmp_path: Path) -> None:
    code, first = applied(tmp_path, CHAIN)
    assert code == 0
    layers = ["step_started", *["layer"] * 3, "step_finished", "step_started", *["layer"] * 2, "step_finished"]
    assert first.names() == ["job_started", *layers, "step_started", "step_finished", "job_finished"]
    code, second = applied(tmp_path, CHAIN)
    assert code == 0
    assert second.names() == ["job_started", "step_cached", "step_cached", "step_cached", "job_finished"]
    assert [e["metrics"] for e in second.named("step_cached")] == [
        {"quality": 1.0, "layers": 3}, {"quality": 1.0, "layers": 2}, {"perplexity": 15.5},
    ]  # fmt: skip


def test_events_say_what_happened(tmp_path: Path) -> None:
    _, kept = applied(tmp_path, CHAIN)
    path = job(tmp_path, CHAIN).path
    started, finished = kept.events[0], kept.events[-1]
    assert (started["job"], started["name"], started["directory"]) == (path.name, "demo", str(path))
    assert started["steps"][1] == {"index": 1, "id": "gptq", "kind": "fake.layers", "state": "run"}
    assert (finished["exit_code"], finished["output"]) == (0, str(path / "output"))
    assert finished["memory"] > 2**20
    step = kept.named("step_finished")[0]
    assert (step["step"], step["id"], step["digest"]) == (0, "prune", digests(tmp_path, CHAIN)[0])
    assert all(event["memory"] > 2**20 for event in kept.named("layer"))


def test_the_directory_holds_the_evidence(tmp_path: Path) -> None:
    applied(tmp_path, CHAIN)
    applied(tmp_path, CHAIN)
    path = job(tmp_path, CHAIN).path
    assert sorted(p.name for p in path.iterdir()) == [
        ".lock", "environment.json", "events.jsonl", "job.json", "output", "plan.json", "provenance.json",
        "recipe.lock", "recipe.yaml", "steps", "worker.log",
    ]  # fmt: skip
    assert sorted(p.name for p in (path / "steps").iterdir()) == ["01-prune", "02-gptq", "03-quality"]
    names = [json.loads(line)["event"] for line in (path / "events.jsonl").read_text().splitlines()]
    assert names.count("job_started") == 2
    assert names[-1] == "job_finished"
    state = json.loads((path / "job.json").read_text())
    assert (state["status"], state["exit_code"], state["command"]) == ("done", 0, "runner apply demo.yaml")


def test_output_is_the_last_checkpoint_by_hard_link(tmp_path: Path) -> None:
    applied(tmp_path, CHAIN)
    made = tmp_path / "store" / plan(CHAIN).steps[1].key / "out" / "shards" / "model.bin"
    path = job(tmp_path, CHAIN).path
    assert (path / "output" / "shards" / "model.bin").samefile(made)
    assert (path / "steps" / "02-gptq" / "out" / "shards" / "model.bin").samefile(made)
    assert not made.stat().st_mode & 0o222


def test_a_job_without_a_checkpoint_has_no_output(tmp_path: Path) -> None:
    steps = [{"id": "baseline", "kind": "fake.score", "params": {"perplexity": 1.5}, "produces": "metrics"}]
    code, kept = applied(tmp_path, steps)
    assert (code, kept.events[-1]["output"]) == (0, None)


def test_two_empty_stores_give_equal_digests(tmp_path: Path) -> None:
    applied(tmp_path / "a", CHAIN)
    applied(tmp_path / "b", CHAIN)
    assert digests(tmp_path / "a", CHAIN) == digests(tmp_path / "b", CHAIN)
    assert len(set(digests(tmp_path / "a", CHAIN))) == 3


def test_another_job_shares_the_results(tmp_path: Path) -> None:
    applied(tmp_path, CHAIN)
    code, kept = applied(tmp_path, CHAIN[:2])
    assert (code, kept.names()) == (0, ["job_started", "step_cached", "step_cached", "job_finished"])
    assert job(tmp_path, CHAIN).path != job(tmp_path, CHAIN[:2]).path
    assert (job(tmp_path, CHAIN[:2]).path / "recipe.lock").exists()


def test_a_cached_apply_starts_no_worker_and_loads_no_torch(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    applied(jobs, CHAIN)
    log = job(jobs, CHAIN).path / "worker.log"
    log.unlink()
    process = start(jobs, CHAIN)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "torch imported: False\n")
    assert not log.exists()


@pytest.mark.parametrize(
    ("flip", "reason"),
    [
        ("out/shards/model.bin", "out/shards/model.bin has other bytes than were written"),
        ("metrics.json", "metrics.json has other bytes than were written"),
        ("record.json", "record.json was changed after it was written"),
    ],
)
def test_a_flipped_byte_is_noticed_said_and_made_good(tmp_path: Path, flip: str, reason: str) -> None:
    applied(tmp_path, CHAIN)
    before = digests(tmp_path, CHAIN)
    step = plan(CHAIN).steps[0]
    path = tmp_path / "store" / step.key / flip
    times = path.stat()
    path.chmod(0o644)
    data = path.read_bytes()
    at = data.index(b"1.0") if flip != "out/shards/model.bin" else 50
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    code, kept = applied(tmp_path, CHAIN)
    kept_at = tmp_path / "store" / ".corrupt" / f"{step.key}-1"
    assert code == 0
    assert kept.one("message")["text"] == (
        f"`prune`: the stored result is damaged: {reason}; it was moved to {kept_at} and is recomputed"
    )
    assert kept.one("message")["level"] == "warning"
    assert [e["id"] for e in kept.named("step_finished")] == ["prune"]
    assert [e["id"] for e in kept.named("step_cached")] == ["gptq", "quality"]
    assert kept_at.is_dir()
    assert digests(tmp_path, CHAIN) == before
    linked = job(tmp_path, CHAIN).path / "steps" / "01-prune" / flip
    assert linked.samefile(path)


@pytest.mark.parametrize("name", ["out/shards/model.bin", "record.json", "metrics.json"])
def test_a_missing_file_is_noticed(tmp_path: Path, name: str) -> None:
    applied(tmp_path, CHAIN)
    (tmp_path / "store" / plan(CHAIN).steps[1].key / name).unlink()
    code, kept = applied(tmp_path, CHAIN)
    assert code == 0
    assert f"the stored result is damaged: {name} is missing; " in kept.one("message")["text"]
    assert [e["id"] for e in kept.named("step_finished")] == ["gptq"]


def test_a_removed_link_comes_back(tmp_path: Path) -> None:
    applied(tmp_path, CHAIN)
    path = job(tmp_path, CHAIN).path
    for name in ("output/README.md", "steps/01-prune/record.json", "plan.json", "recipe.yaml", "environment.json"):
        (path / name).unlink()
    assert applied(tmp_path, CHAIN)[0] == 0
    for name in ("output/README.md", "steps/01-prune/record.json", "plan.json", "recipe.yaml", "environment.json"):
        assert (path / name).exists()


def test_a_torn_event_line_is_closed(tmp_path: Path) -> None:
    applied(tmp_path, CHAIN)
    events = job(tmp_path, CHAIN).path / "events.jsonl"
    with open(events, "a") as file:
        file.write('{"event":"lay')
    applied(tmp_path, CHAIN)
    lines = events.read_text().splitlines()
    assert lines.count('{"event":"lay') == 1
    assert json.loads(lines[lines.index('{"event":"lay') + 1])["event"] == "job_started"


def gated(rule: dict[str, Any]) -> list[dict[str, Any]]:
    baseline = {"id": "baseline", "kind": "fake.score", "params": {"perplexity": 15.374}, "produces": "metrics"}
    quality = {
        "id": "quality", "kind": "fake.score", "params": {"perplexity": 19.31}, "produces": "metrics",
        "gates": {"perplexity": rule},
    }  # fmt: skip
    return [baseline, CHAIN[0], quality, CHAIN[1]]


def test_a_missed_gate_ends_the_job_and_keeps_everything(tmp_path: Path) -> None:
    steps = gated({"max_ratio_to": "baseline", "value": 1.25})
    text = "`perplexity` is 19.31, 0.09 above its limit 19.22 (1.25 × `baseline` 15.374)"
    for names in (["step_finished"] * 3, ["step_cached"] * 3):
        code, kept = applied(tmp_path, steps)
        assert code == 3
        assert [e["event"] for e in kept.named("step_finished", "step_cached")] == names
        gate = kept.one("gate")
        assert (gate["step"], gate["id"], gate["metric"], gate["passed"]) == (2, "quality", "perplexity", False)
        assert (gate["value"], round(gate["limit"], 4), gate["text"]) == (19.31, 19.2175, text)
        assert gate["rule"] == "at most 1.25 × `baseline`"
        assert kept.events[-1]["exit_code"] == 3
    directory = job(tmp_path, steps)
    assert json.loads((directory.path / "job.json").read_text())["status"] == "gate-missed"
    made = tmp_path / "store" / plan(steps).steps[1].key / "out" / "README.md"
    assert (directory.path / "output" / "README.md").samefile(made)


def test_a_passed_gate_lets_the_job_go_on(tmp_path: Path) -> None:
    code, kept = applied(tmp_path, gated({"max_ratio_to": "baseline", "value": 1.26}))
    assert (code, kept.one("gate")["passed"]) == (0, True)
    assert kept.one("gate")["text"] == "`perplexity` is 19.31, within its limit 19.37 (1.26 × `baseline` 15.374)"
    assert len(kept.named("step_finished")) == 4


def test_other_bytes_of_an_input_are_said(tmp_path: Path) -> None:
    """A kind that breaks its promise of equal bytes is told on."""
    applied(tmp_path, CHAIN)
    store = Store(tmp_path / "store")
    first, second = plan(CHAIN).steps[:2]
    other = store.entry(second.key)
    assert other is not None
    old = store.entry(first.key)
    assert old is not None
    store.remove(first.key)
    stage = store.stage(first.key)
    (stage.out / "other").write_text("other bytes")
    store.commit(stage, old.record)
    code, kept = applied(tmp_path, CHAIN)
    assert code == 0
    assert [m["text"] for m in kept.named("message")] == [
        f"`gptq`: it was made from a result of `prune` with other bytes, digest {old.record.digest}",
    ]


def test_a_model_that_is_not_here_is_told_before_a_worker_starts(tmp_path: Path) -> None:
    from runner.execute.application import apply
    from runner.execute.settings import ApplySettings

    absent = plan(CHAIN, model=None)
    with pytest.raises(MachineError) as caught:
        apply(absent, None, ApplySettings("runner apply demo.yaml"), jobs_root=tmp_path, sinks=[])
    assert caught.value.message == "the model `m` is not on this machine"
    state = json.loads((tmp_path / absent.job_id / "job.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 4)


def test_files_of_another_file_system_are_copied(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    import tempfile

    with tempfile.TemporaryDirectory(dir=other) as store:
        (tmp_path / "store").symlink_to(store)
        for _ in range(2):
            assert applied(tmp_path, CHAIN)[0] == 0
        copy = job(tmp_path, CHAIN).path / "output" / "shards" / "model.bin"
        made = Path(store) / plan(CHAIN).steps[1].key / "out" / "shards" / "model.bin"
        assert not copy.samefile(made)
        assert copy.read_bytes() == made.read_bytes()


def test_the_worker_alone_needs_no_torch() -> None:
    """The worker's own modules are light: a step that computes nothing starts at once."""
    import sys

    code = "import sys, runner.execute.worker.server, runner.execute.application; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
