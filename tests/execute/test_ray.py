"""A Ray cluster on this machine; skipped where the extra `ray` is not installed, but for its message."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.errors import MachineError, UsageError
from runner.execute import ray_cluster, ray_executor
from runner.execute.executor import Executor, Reports
from runner.execute.ray_cluster import Finding, RayCluster, refusals, wrong
from runner.execute.stopping import Stopping
from runner.job import locks
from runner.job.store import Store
from runner.plan.machine import MachineRefusal
from runner.plan.types import Plan
from runner.report import cluster as report
from tests.execute.applying import KINDS, until
from tests.execute.shipping import applied, located

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="the extra `ray` is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNNER_STEPS_PATH", str(KINDS))
        found = RayCluster(None)
    yield found
    found.close()


def fork(tmp_path: Path, bits: int, **params: Any) -> Plan:
    """A job whose first step is shared by all."""
    steps: list[dict[str, Any]] = [
        {"id": "prune", "kind": "fake.layers", "params": {"layers": 3, **params}},
        {"id": "quantize", "kind": "fake.layers", "params": {"layers": 2, "bits": bits}},
        {"id": "quality", "kind": "fake.score", "params": {"loss": 0.5 * bits}, "produces": "metrics"},
    ]
    return located(steps, tmp_path, f"job{bits}")


def digests(jobs: Path) -> dict[str, str]:
    store = Store(jobs / "store")
    return {key: entry.record.digest for key in sorted(store.keys()) if (entry := store.entry(key)) is not None}


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_jobs_with_a_shared_prefix_run_it_once_with_the_bytes_of_this_machine(
    tmp_path: Path, cluster: RayCluster
) -> None:
    plans = [fork(tmp_path, bits, trace=str(tmp_path / "trace")) for bits in (2, 3, 4)]
    jobs = tmp_path / "jobs"
    cluster.check(jobs / "store")
    codes, kept = applied(plans, jobs, lambda reports: ray_executor.make(reports, cluster, None))
    assert codes == [0, 0, 0]
    assert [len(sink.named("step_finished")) for sink in kept] == [3, 2, 2]
    assert (tmp_path / "trace").read_text().splitlines() == ["0 0", "0 1", "0 2"]
    (tmp_path / "trace").unlink()
    applied(plans, tmp_path / "local", None)
    assert len(digests(jobs)) == 7
    assert digests(jobs) == digests(tmp_path / "local")


@needs_ray
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("victim", ["worker", "actor"])
def test_a_lost_worker_costs_the_unfinished_layer(tmp_path: Path, cluster: RayCluster, victim: str) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"layer": 2, "do": "hang"}))
    made = fork(tmp_path, 4, control=str(control), trace=str(tmp_path / "trace"))
    lock = tmp_path / "jobs" / "store" / ".locks" / f"{made.steps[0].key}.lock"

    def strike() -> None:
        until(control.with_suffix(".reached").exists)
        control.unlink()
        holder = locks.holder(lock)
        pid = holder.pid if holder else 0
        os.kill(pid if victim == "worker" else parent(pid), signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    codes, (kept,) = applied([made], tmp_path / "jobs", lambda reports: ray_executor.make(reports, cluster, None))
    thread.join()
    assert codes == [0]
    assert [e["resumed_at"] for e in kept.named("step_started")] == [None, 2, None, None]
    (warning,) = kept.named("message")
    assert warning["text"].endswith("; it continues on another one")
    assert (tmp_path / "trace").read_text().splitlines() == ["0 0", "0 1", "0 2"]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@needs_ray
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_a_stop_ends_at_a_safe_point_and_the_next_apply_goes_on(tmp_path: Path, cluster: RayCluster) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"layer": 2, "do": "wait"}))
    plans = [fork(tmp_path, bits, control=str(control)) for bits in (2, 3)]
    made: list[Executor] = []
    stopping = Stopping()

    def maker(reports: Reports) -> Executor:
        made.append(ray_executor.make(reports, cluster, None))
        return made[0]

    def ask() -> None:
        until(control.with_suffix(".reached").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    codes, (first, _) = applied(plans, tmp_path / "jobs", maker, stopping=stopping)
    thread.join()
    assert codes == [75, 75]
    assert first.one("interrupted")["resume"] == "again"
    control.unlink()
    codes, kept = applied(plans, tmp_path / "jobs", lambda reports: ray_executor.make(reports, cluster, None))
    assert codes == [0, 0]
    assert kept[0].named("step_started")[0]["resumed_at"] == 2


@needs_ray
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_a_remote_store_instead_of_a_shared_folder(
    tmp_path: Path, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/remote"
    plans = [fork(tmp_path, bits) for bits in (2, 3)]
    codes, _ = applied(plans, tmp_path / "jobs", lambda reports: ray_executor.make(reports, cluster, url), remote=url)
    assert codes == [0, 0]
    applied(plans, tmp_path / "local", None)
    assert digests(tmp_path / "jobs") == digests(tmp_path / "local")


@needs_ray
def test_an_address_where_nobody_listens() -> None:
    with pytest.raises(MachineError) as caught:
        RayCluster("127.0.0.1:1")
    assert caught.value.render() == (
        "error[R703]: no Ray cluster answers at 127.0.0.1:1: connection refused\n"
        "help: check it with `ray status`, start the cluster with `ray start --head`, or leave out `--address`"
    )
    with pytest.raises(UsageError) as wrong_form:
        RayCluster("http://cluster")
    assert wrong_form.value.render() == (
        "error: `http://cluster` is no address of a Ray cluster\nhelp: write `auto`, `host:6379` or `ray://host:10001`"
    )


@needs_ray
def test_a_cluster_that_wants_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refused(**_: object) -> None:
        try:
            raise RuntimeError("Failed to connect to GCS.\nray.exceptions.AuthenticationError: InvalidAuthToken")
        except RuntimeError as error:
            raise ConnectionError("Failed to connect to Ray cluster at head:6379") from error

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setattr(ray_cluster, "_reach", lambda address: None)
    with pytest.raises(MachineError) as caught:
        RayCluster("head:6379")
    assert caught.value.render() == (
        "error[R703]: the Ray cluster at head:6379 refuses this machine, which shows no token\n"
        "help: set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN; an address "
        "other than `auto` is shown none by itself"
    )


@needs_ray
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_doctor_examines_a_cluster(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runner", "doctor", "--executor", "ray", "--jobs", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *_, cluster, machine = json.loads(done.stdout)
    assert (cluster["level"], cluster["text"].startswith("Ray on this machine: ")) == ("ok", True)
    text = f"{socket.gethostname()} has the same versions as this machine, and sees {tmp_path}/store"
    assert (machine["level"], machine["text"]) == ("ok", text)


@needs_ray
def test_doctor_names_an_address_where_nobody_listens(tmp_path: Path) -> None:
    (finding,) = report.examine("127.0.0.1:1", tmp_path)
    assert (finding.level, finding.text) == ("fail", "no Ray cluster answers at 127.0.0.1:1: connection refused")


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_the_extra() -> None:
    with pytest.raises(MachineError) as caught:
        RayCluster(None)
    assert caught.value.render() == (
        "error: `--executor ray` needs the package ray, which is not installed\nhelp: `pip install 'runner[ray]'`"
    )


def test_machines_that_differ_are_named() -> None:
    from runner.execute import installation

    here = installation.facts()
    findings = [
        Finding("same", here, None, True),
        Finding("older", {**here, "torch": "2.12.0"}, None, True),
        Finding("empty", {}, "runner is not installed there (No module named 'runner')", True),
    ]
    assert wrong(findings) == [
        f"older has torch 2.12.0, here {here['torch']}",
        "empty cannot run steps: runner is not installed there (No module named 'runner')",
    ]


def test_machines_that_cannot_compute_with_the_store_are_refused_at_once() -> None:
    from runner.execute import installation

    here = installation.facts()
    fault = "the remote store s3://bucket/store cannot be reached or written: Access Denied"
    findings = [
        Finding("older", {**here, "torch": "2.12.0"}, None, True),
        Finding("alone", here, None, False),
        Finding("stranger", here, None, True, remote_fault=fault),
        Finding("silent", {}, "it does not answer (timed out)", False),
    ]
    found = MachineRefusal(refusals("the Ray cluster at head:6379", findings, Path("/jobs/store")))
    assert found.render() == (
        f"error[R704]: the Ray cluster at head:6379: older has torch 2.12.0, here {here['torch']}\n"
        "help: install there what is installed here, or submit from an environment like that of the cluster\n\n"
        "error[R704]: the Ray cluster at head:6379: silent cannot run steps: it does not answer (timed out)\n"
        "help: install there what is installed here, or submit from an environment like that of the cluster\n\n"
        "error[R705]: the jobs folder /jobs is not the same folder on alone\n"
        "help: use a jobs folder that all machines share (`--jobs`), or a remote store (`--remote`)\n\n"
        f"error[R857]: stranger cannot use the remote store: {fault}\n"
        "help: its credentials and packages are those of each machine: set them where Ray is started there"
    )
