"""Batch jobs: with submitit's executor of local processes where the extra is installed; skipped elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.errors import MachineError
from runner.execute import slurm_executor
from runner.execute.executor import Executor, Reports
from runner.job import batch_jobs, locks
from runner.job.store import Store
from runner.plan.resources import Node
from runner.plan.types import Plan
from tests.execute.applying import KINDS, until
from tests.execute.shipping import applied, located
from tests.execute.test_ray import digests, fork, parent

HAS_SUBMITIT = importlib.util.find_spec("submitit") is not None
needs_submitit = pytest.mark.skipif(not HAS_SUBMITIT, reason="the extra `slurm` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(KINDS))


def maker(jobs: Path) -> Any:
    def make(reports: Reports) -> Executor:
        return slurm_executor.make(reports, jobs / "store", {"cluster": "local"})

    return make


@needs_submitit
@pytest.mark.nightly
def test_jobs_with_a_shared_prefix_run_it_once_with_the_bytes_of_this_machine(tmp_path: Path) -> None:
    plans = [fork(tmp_path, bits, trace=str(tmp_path / "trace")) for bits in (2, 3)]
    codes, kept = applied(plans, tmp_path / "jobs", maker(tmp_path / "jobs"))
    assert codes == [0, 0]
    assert [len(sink.named("step_finished")) for sink in kept] == [3, 2]
    (tmp_path / "trace").unlink()
    applied(plans, tmp_path / "local", None)
    assert digests(tmp_path / "jobs") == digests(tmp_path / "local")
    assert list((tmp_path / "jobs" / "store" / batch_jobs.FOLDER).glob("*.jsonl")) == []


def hanging(tmp_path: Path, do: str) -> tuple[Plan, Path]:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"layer": 2, "do": do}))
    return fork(tmp_path, 4, control=str(control), trace=str(tmp_path / "trace")), control


@needs_submitit
@pytest.mark.nightly
def test_a_job_that_is_preempted_stops_at_a_safe_point_and_is_queued_again(tmp_path: Path) -> None:
    made, control = hanging(tmp_path, "wait")
    lock = tmp_path / "jobs" / "store" / ".locks" / f"{made.steps[0].key}.lock"

    def preempt() -> None:
        until(control.with_suffix(".reached").exists)
        holder = locks.holder(lock)
        control.unlink()
        os.kill(parent(holder.pid if holder else 0), signal.SIGUSR2)

    thread = threading.Thread(target=preempt)
    thread.start()
    codes, (kept,) = applied([made], tmp_path / "jobs", maker(tmp_path / "jobs"))
    thread.join()
    assert codes == [0]
    assert [e["resumed_at"] for e in kept.named("step_started")] == [None, 2, None, None]
    texts = [e["text"] for e in kept.named("message") if e["level"] == "warning"]
    assert len(texts) == 1
    assert texts[0].endswith(" has to end; it is queued again and continues")
    assert (tmp_path / "trace").read_text().splitlines() == ["0 0", "0 1", "0 2"]


@needs_submitit
@pytest.mark.nightly
def test_a_job_that_dies_is_submitted_again(tmp_path: Path) -> None:
    made, control = hanging(tmp_path, "hang")
    lock = tmp_path / "jobs" / "store" / ".locks" / f"{made.steps[0].key}.lock"

    def strike() -> None:
        until(control.with_suffix(".reached").exists)
        holder = locks.holder(lock)
        control.unlink()
        os.kill(holder.pid if holder else 0, signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    codes, (kept,) = applied([made], tmp_path / "jobs", maker(tmp_path / "jobs"))
    thread.join()
    assert codes == [0]
    assert [e["resumed_at"] for e in kept.named("step_started")][:2] == [None, 2]
    assert Store(tmp_path / "jobs" / "store").has(made.steps[2].key)


def test_the_machines_of_sinfo() -> None:
    listed = (
        "a 64 257000 gpu:a100:4(S:0-1)\nb 64+ 257000+ gpu:2 genoa,ib\nc 8 16000 (null)\nc 8 16000 (null)\n"
        "d 16 32000 gpu:h100:2,gpu:l40:1,shard:8\n"
    )
    found = slurm_executor.nodes_of(listed)
    assert [node.id for node in found] == ["a", "b", "c", "d"]
    assert found[1].has_processor("genoa")
    assert not found[2].has_processor("genoa")
    assert tuple(replace(node, processor=None, id="") for node in found) == (
        Node(64, 257000 * 2**20, 4), Node(64, 257000 * 2**20, 2), Node(8, 16000 * 2**20, 0), Node(16, 32000 * 2**20, 3),
    )  # fmt: skip


def test_without_the_extra_or_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError) as caught:
        slurm_executor.offer("slurm")
    if HAS_SUBMITIT:
        expected = (
            "error[R706]: there is no Slurm here: `sbatch` is not found\n"
            "help: run this on a machine that submits to Slurm, or try jobs on this machine with "
            "`--slurm cluster=local`"
        )
    else:
        expected = (
            "error: `--executor slurm` needs the package submitit, which is not installed\n"
            "help: `pip install 'runner[slurm]'`"
        )
    assert caught.value.render() == expected


@needs_submitit
def test_what_a_step_asks_of_slurm(tmp_path: Path) -> None:
    from runner.plan.resources import Demand
    from tests.execute.test_node_step import task

    made = located([{"id": "prune", "kind": "fake.layers"}], tmp_path)
    asked = replace(
        task(made, tmp_path / "jobs"), demand=Demand(cpus=4, memory=3 * 10**9, gpus=1.5, alone=True, processor="genoa")
    )
    given = {"cluster": "slurm", "partition": "gpu", "timeout_min": "90"}
    assert slurm_executor.parameters(asked, given) == {
        "name": "runner-prune", "timeout_min": 90, "cpus_per_task": 4, "gpus_per_node": 2, "slurm_mem": "2862M",
        "slurm_exclusive": True, "slurm_constraint": "genoa", "slurm_partition": "gpu",
    }  # fmt: skip
