"""`runner apply --jobs-at-once`: several jobs as one graph of steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.job.store import Store
from tests.commands.conftest import RECIPE, Run
from tests.commands.test_several import LAYERS, MATRIX, _kinds, events, ran, start, summary  # noqa: F401  _kinds: fixture
from tests.execute.applying import until


def stored(folder: Path) -> dict[str, str]:
    store = Store(folder / "store")
    return {key: entry.record.digest for key in sorted(store.keys()) if (entry := store.entry(key)) is not None}


@pytest.mark.nightly
def test_a_matrix_at_once_runs_shared_steps_once_with_the_bytes_of_one_after_another(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(MATRIX)
    assert run("apply", "toy.yaml", "--progress", "none", "--jobs", "one")[0] == 0
    code, out, err = run("apply", "toy.yaml", "--progress", "jsonl", "--jobs-at-once", "3")
    assert (code, err) == (0, "")
    assert sorted(ran(out)) == ["after"] * 3 + ["before", "more", "more", "shrink"]
    assert stored(folder / "jobs") == stored(folder / "one")
    found = events(out)
    jobs = {event["job"] for event in found[:-1]}
    assert len(jobs) == 6
    assert [(job["run"] + job["cached"], job["verdict"]) for job in found[-1]["jobs"]] == [(4, "done")] * 6
    for job in jobs:
        own = [json.loads(line) for line in (folder / "jobs" / job / "events.jsonl").read_text().splitlines()]
        assert (own[0]["event"], own[-1]["event"], own[-1]["exit_code"]) == ("job_started", "job_finished", 0)
        assert own == [{k: v for k, v in e.items() if k != "job" or "steps" in e or "exit_code" in e} for e in found
                       if e.get("job") == job]  # fmt: skip


@pytest.mark.nightly
def test_lines_name_their_job_and_the_summary_the_time_of_all(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(MATRIX)
    code, out, _ = run("apply", "toy.yaml", "--jobs-at-once", "2")
    assert code == 0
    assert out.startswith("6 jobs, 24 steps: 7 to run, 17 cached or shared\n\n[ 0:00] toy (more=1, points=3) ")
    assert "] toy (more=2, points=5) 4/4 more: toy.score cached" in out
    assert "\n6 of 6 jobs done in " in out
    assert all(len(row) == 4 for row in summary(out))


@pytest.mark.parametrize("keep_going", [True, False])
def test_a_job_that_cannot_be_planned_or_fails(run: Run, folder: Path, keep_going: bool) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "a_wrong.yaml").write_text(RECIPE.replace("points: 4", "pionts: 4"))
    (folder / "recipes" / "b_gate.yaml").write_text(RECIPE.replace("name: toy", "name: gate").replace("5,", "9,"))
    (folder / "recipes" / "c_good.yaml").write_text(RECIPE.replace("name: toy", "name: good"))
    option = "--keep-going" if keep_going else "--no-keep-going"
    code, out, err = run("apply", "recipes", "--jobs-at-once", "2", option, "--progress", "none")
    assert "a_wrong.yaml:7:17: error[R205]: " in err
    assert code == 2
    verdicts = [row[1] for row in summary(out)]
    assert verdicts == ["recipe wrong", *(["gate missed", "done"] if keep_going else ["not started"] * 2)]


@pytest.mark.nightly
def test_a_signal_stops_all_jobs_at_safe_points_and_the_same_command_goes_on(run: Run, folder: Path) -> None:
    for name in ("a", "b"):
        text = LAYERS.replace("name: slow", f"name: {name}").replace("id: second", f"id: {name}")
        (folder / f"{name}.yaml").write_text(text)
    (folder / "toy.yaml").unlink()
    (folder / "control.json").write_text(json.dumps({"layer": 2, "do": "wait"}))
    process = start(folder, "apply", ".", "--progress", "jsonl", "--jobs-at-once", "2")
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    while sum(line["event"] == "layer" and (line["step"], line["layer"]) == (1, 2) for line in lines) < 2:
        lines.append(json.loads(process.stdout.readline()))
    until((folder / "control.reached").exists)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, err) == (75, "")
    assert [job["verdict"] for job in events(out)[-1]["jobs"]] == ["interrupted", "interrupted"]
    (folder / "control.json").unlink()
    code, out, _ = run("apply", ".", "--progress", "jsonl", "--jobs-at-once", "2")
    assert code == 0
    assert sorted(event["resumed_at"] for event in events(out) if event["event"] == "step_started") == [2, 2]


@pytest.mark.nightly
def test_a_time_limit_stops_each_job_and_not_the_others(run: Run, folder: Path) -> None:
    (folder / "slow.yaml").write_text(LAYERS)
    assert run("apply", "toy.yaml", "--progress", "none")[0] == 0  # what is in the store takes no time
    (folder / "control.json").write_text(json.dumps({"layer": 2, "do": "wait"}))
    code, out, err = run(
        "apply", "slow.yaml", "toy.yaml", "--jobs-at-once", "2", "--timeout", "4s", "--progress", "none"
    )
    assert (code, err) == (75, "")
    assert [row[1] for row in summary(out)] == ["timed out", "done"]


@pytest.mark.nightly
def test_the_table_of_a_terminal(folder: Path) -> None:
    """In a pseudo-terminal: the table is drawn, and gone at the end."""
    import pty

    (folder / "toy.yaml").write_text(MATRIX)
    parent, child = pty.openpty()
    environment: dict[str, Any] = {**os.environ, "TERM": "xterm", "COLUMNS": "90", "LINES": "20"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "apply", "toy.yaml", "--jobs-at-once", "2"],
        cwd=folder, stdout=child, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    os.close(child)
    text = b""
    while True:
        try:
            block = os.read(parent, 4096)
        except OSError:
            break
        if not block:
            break
        text += block
    os.close(parent)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    shown = text.decode()
    assert "6 jobs" in shown
    assert "toy (more=1, points=3)" in shown
    assert "6 of 6 jobs done in " in shown.rpartition("\x1b[?25h")[2]


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_a_number_of_jobs_is_at_least_one(run: Run, text: str) -> None:
    code, _, err = run("apply", "toy.yaml", f"--jobs-at-once={text}")
    assert code == 2
    assert f"argument --jobs-at-once: must be a whole number of at least 1; got {text!r}\n" in err
