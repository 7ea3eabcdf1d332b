"""Signals, sudden deaths and two at once: nothing is lost, nothing is made twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runner.job import locks
from runner.job.listing import load
from runner.job.store import Store
from tests.execute.applying import applied, digests, start, until
from tests.job.plans import plan


def chain(tmp_path: Path, layers: int = 4) -> list[dict[str, Any]]:
    files = {"trace": str(tmp_path / "trace"), "control": str(tmp_path / "control.json")}
    params = {"layers": layers, **files}
    return [{"id": f"step{n}", "kind": "fake.layers", "params": params} for n in range(2)]


def reach(tmp_path: Path, do: str) -> subprocess.Popen[str]:
    """An apply in another process that has come to layer 2 and does `do` there."""
    (tmp_path / "control.json").write_text(json.dumps({"layer": 2, "do": do}))
    process = start(tmp_path / "jobs", chain(tmp_path))
    until((tmp_path / "control.reached").exists)
    return process


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_at_a_safe_point(tmp_path: Path, number: signal.Signals) -> None:
    process = reach(tmp_path, "wait")
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == 75
    interrupted, finished = events(out)[-2:]
    assert (interrupted["event"], interrupted["step"]) == ("interrupted", 0)
    assert interrupted["resume"] == "runner apply demo.yaml"
    assert (finished["event"], finished["exit_code"]) == ("job_finished", 75)
    assert load(tmp_path / "jobs", "demo").status == "interrupted"
    assert Store(tmp_path / "jobs" / "store").partial(plan(chain(tmp_path)).steps[0].key) == (2, 4)
    goes_on(tmp_path)


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    process = reach(tmp_path, "hang")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while (event := json.loads(process.stdout.readline()))["event"] != "message":
        pass  # two signals that arrive together are one: wait until the first was heard
    assert event["text"] == "stopping at the next safe point; a second Ctrl-C ends it at once"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130
    assert [e["event"] for e in events(out)] == ["interrupted", "job_finished"]
    goes_on(tmp_path)


def goes_on(tmp_path: Path) -> None:
    """Apply again: it begins at layer 2, and nothing was made twice."""
    (tmp_path / "control.json").unlink()
    code, kept = applied(tmp_path / "jobs", chain(tmp_path))
    assert code == 0
    assert kept.named("step_started")[0]["resumed_at"] == 2
    done = (tmp_path / "trace").read_text().splitlines()
    assert done == [f"{step} {layer}" for step in range(2) for layer in range(4)]


def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    process = reach(tmp_path, "hang")
    key = plan(chain(tmp_path)).steps[0].key
    lock = tmp_path / "jobs" / "store" / ".locks" / f"{key}.lock"
    holder = locks.holder(lock)
    assert holder is not None
    assert holder.pid != process.pid
    process.kill()
    process.communicate()
    until(lambda: locks.holder(lock) is None)
    until(lambda: not Path(f"/proc/{holder.pid}").exists() or "State:\tZ" in status(holder.pid))
    assert load(tmp_path / "jobs", "demo").status == "interrupted"
    goes_on(tmp_path)


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_a_worker_that_somebody_kills_leaves_a_job_that_goes_on(tmp_path: Path) -> None:
    process = reach(tmp_path, "hang")
    key = plan(chain(tmp_path)).steps[0].key
    holder = locks.holder(tmp_path / "jobs" / "store" / ".locks" / f"{key}.lock")
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == 4
    assert [e["event"] for e in events(out)[-2:]] == ["step_failed", "job_finished"]
    goes_on(tmp_path)


def test_a_second_apply_of_the_plan_waits_and_says_for_whom(tmp_path: Path) -> None:
    first = reach(tmp_path, "wait")
    second = start(tmp_path / "jobs", chain(tmp_path))
    assert second.stdout is not None
    waiting = json.loads(second.stdout.readline())
    assert (waiting["event"], waiting["step"]) == ("waiting", None)
    assert waiting["holder"].startswith(f"process {first.pid} (runner apply demo.yaml), since 2")
    (tmp_path / "control.json").unlink()
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 75
    first.communicate()
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert [e["resumed_at"] for e in events(out) if e["event"] == "step_started"] == [2, None]


def test_a_second_apply_that_does_not_wait_says_who_is_at_work(tmp_path: Path) -> None:
    first = reach(tmp_path, "wait")
    second = start(tmp_path / "jobs", chain(tmp_path), "--no-wait")
    out, err = second.communicate()
    assert (second.returncode, out) == (75, "")
    head, help = err.splitlines()
    assert head.startswith(
        f"error: another apply of this plan is running: process {first.pid} (runner apply demo.yaml), since 2"
    )
    assert help == "help: when it has ended: runner apply demo.yaml"
    first.send_signal(signal.SIGTERM)
    first.communicate()


def test_a_waiting_apply_can_be_stopped(tmp_path: Path) -> None:
    first = reach(tmp_path, "wait")
    second = start(tmp_path / "jobs", chain(tmp_path))
    assert second.stdout is not None
    second.stdout.readline()
    second.send_signal(signal.SIGINT)
    out, _ = second.communicate()
    assert (second.returncode, events(out)[-1]["event"]) == (75, "interrupted")
    first.send_signal(signal.SIGTERM)
    first.communicate()


def test_two_plans_that_share_a_step_make_it_once(tmp_path: Path) -> None:
    """The second worker waits for the step that the first one makes, and takes its result."""
    first = reach(tmp_path, "wait")
    alone = chain(tmp_path)[:1]
    second = start(tmp_path / "jobs", alone)
    assert second.stdout is not None
    lines = [json.loads(second.stdout.readline()) for _ in range(2)]
    assert [line["event"] for line in lines] == ["job_started", "waiting"]
    assert (lines[1]["step"], "(runner apply demo.yaml)" in lines[1]["holder"]) == (0, True)
    (tmp_path / "control.json").unlink()
    first.send_signal(signal.SIGTERM)
    first.communicate()
    out, _ = second.communicate()
    assert second.returncode == 0
    assert [e["resumed_at"] for e in events(out) if e["event"] == "step_started"] == [2]
    assert (tmp_path / "trace").read_text().splitlines() == [f"0 {layer}" for layer in range(4)]


def test_applies_at_once_make_every_layer_once(tmp_path: Path) -> None:
    together = [start(tmp_path / "jobs", chain(tmp_path)) for _ in range(3)]
    assert [process.communicate()[1] for process in together] == ["torch imported: False\n"] * 3
    assert [process.returncode for process in together] == [0, 0, 0]
    assert len((tmp_path / "trace").read_text().splitlines()) == 8
    applied(tmp_path / "other", chain(tmp_path))
    assert digests(tmp_path / "jobs", chain(tmp_path)) == digests(tmp_path / "other", chain(tmp_path))


@pytest.mark.parametrize(
    ("layers", "seed"), [(6, 7), *(pytest.param(12, seed, marks=pytest.mark.nightly) for seed in range(7, 12))]
)
def test_killed_at_any_moment_it_goes_on(tmp_path: Path, layers: int, seed: int) -> None:
    """SIGKILL after a random number of events, to the parent or to the worker, until the job is done."""
    steps = chain(tmp_path, layers=layers)
    dice = random.Random(seed)
    rounds = 0
    while True:
        process = start(tmp_path / "jobs", steps)
        assert process.stdout is not None
        for _ in range(dice.randrange(1, 7)):
            process.stdout.readline()
        victim: int = process.pid
        if dice.random() < 0.4 and (worker := children(process.pid)):
            victim = worker[0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        process.communicate()
        rounds += 1
        if process.returncode == 0 or all(digests(tmp_path / "jobs", steps)):
            break
    assert rounds > layers // 4
    assert applied(tmp_path / "jobs", steps)[0] == 0
    done = (tmp_path / "trace").read_text().splitlines()
    assert len(done) == len(set(done)), "a finished layer was made again"
    applied(tmp_path / "other", steps)
    assert digests(tmp_path / "jobs", steps) == digests(tmp_path / "other", steps)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
