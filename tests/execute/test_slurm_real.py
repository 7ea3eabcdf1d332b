"""Batch jobs of a real Slurm that is started here; skipped with the reason where its daemons are not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.execute import slurm_executor
from runner.job import batch_jobs
from runner.plan.types import Plan
from tests.execute import slurm_cluster
from tests.execute.applying import KINDS, ROOT, Kept
from tests.execute.ray_machines import command_lines
from tests.execute.shipping import applied
from tests.execute.slurm_cluster import SlurmCluster
from tests.execute.test_ray import digests, fork
from tests.execute.test_two_drivers import leaked
from tests.job import s3_server

_missing = slurm_cluster.missing() or (
    None if importlib.util.find_spec("submitit") else "the extra `slurm` is not installed"
)
pytestmark = [
    pytest.mark.nightly, pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(_missing is not None, reason=_missing or ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNNER_STEPS_PATH", str(KINDS))
        found = SlurmCluster(tmp_path_factory.mktemp("slurm"))
        for name, value in found.variables.items():
            patch.setenv(name, value)
        yield found
        found.close()


def run(plans: list[Plan], jobs: Path) -> tuple[list[int | None], list[Kept]]:
    return applied(plans, jobs, lambda reports: slurm_executor.make(reports, jobs / "store", {}))


def test_jobs_of_a_matrix_and_their_chains_keep_secrets(
    tmp_path: Path, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", s3_server.SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.SECRET)
    (node,) = slurm_executor.offer("slurm").nodes
    assert (node.cpus, node.memory) == (slurm_cluster.CPUS, slurm_cluster.MEMORY * 2**20)
    plans = [fork(tmp_path, bits, trace=str(tmp_path / "trace")) for bits in (2, 3, 4)]
    codes, kept = run(plans, tmp_path / "jobs")
    assert codes == [0, 0, 0]
    assert [len(sink.named("step_finished")) for sink in kept] == [3, 2, 2]
    assert list((tmp_path / "jobs" / "store" / batch_jobs.FOLDER).iterdir()), "logs and scripts of batch jobs"
    assert leaked(tmp_path) == []
    assert s3_server.SECRET not in "".join(map(str, command_lines()))
    (tmp_path / "trace").unlink()
    applied(plans, tmp_path / "local", None)
    assert digests(tmp_path / "jobs") == digests(tmp_path / "local")


def struck(tmp_path: Path, cluster: SlurmCluster, strike: Callable[[str], None]) -> list[str]:
    """Apply a job, strike its first batch job at its third layer, and return the warnings. No layer may be lost."""
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"layer": 2, "do": "wait"}))
    made = fork(tmp_path, 4, control=str(control), trace=str(tmp_path / "trace"))

    def watch() -> None:
        slurm_cluster.until(control.with_suffix(".reached").exists, "the third layer")
        number = cluster.command("squeue", "-h", "-t", "running", "-o", "%i").split()[0]
        control.unlink()
        strike(number)

    thread = threading.Thread(target=watch)
    thread.start()
    codes, (kept,) = run([made], tmp_path / "jobs")
    thread.join()
    assert codes == [0]
    assert [event["resumed_at"] for event in kept.named("step_started")] == [None, 2, None, None]
    assert (tmp_path / "trace").read_text().splitlines() == ["0 0", "0 1", "0 2"]
    return [event["text"] for event in kept.named("message") if event["level"] == "warning"]


def test_preemption_by_a_more_urgent_job(tmp_path: Path, cluster: SlurmCluster) -> None:
    def strike(number: str) -> None:
        cluster.command("sbatch", "-p", "urgent", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")

    (warning,) = struck(tmp_path, cluster, strike)
    assert warning.endswith(" has to end; it is queued again and continues")


def test_the_signal_before_a_time_limit(tmp_path: Path, cluster: SlurmCluster) -> None:
    (warning,) = struck(tmp_path, cluster, lambda number: _ignore(cluster.command("scancel", "--signal=USR2", number)))
    assert warning.endswith(" has to end; it is queued again and continues")


def test_a_requeue_by_hand(tmp_path: Path, cluster: SlurmCluster) -> None:
    (warning,) = struck(tmp_path, cluster, lambda number: _ignore(cluster.command("scontrol", "requeue", number)))
    assert warning.endswith(" has to end; it is queued again and continues")


def test_a_batch_job_that_is_cancelled_is_submitted_again(tmp_path: Path, cluster: SlurmCluster) -> None:
    *_, warning = struck(tmp_path, cluster, lambda number: _ignore(cluster.command("scancel", number)))
    assert " ended as CANCELLED (its log is " in warning
    assert warning.endswith("); it continues on another one")


def test_a_step_that_no_node_holds_is_refused_at_once(tmp_path: Path, cluster: SlurmCluster) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE + "    resources: {cpus: 999}\n")
    done = command(tmp_path, "plan", str(recipe), "--executor", "slurm")
    assert done.returncode == 4
    assert "asks for 999 processors; the Slurm cluster has 4 processors" in done.stdout + done.stderr


def test_an_option_that_slurm_does_not_take(tmp_path: Path, cluster: SlurmCluster) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE)
    done = command(tmp_path, "apply", str(recipe), "--executor", "slurm", "--slurm", "partition=nothing")
    assert done.returncode == 4
    assert "Slurm refuses the job: " in done.stdout + done.stderr
    assert "invalid partition" in done.stdout + done.stderr


def test_a_detached_apply_goes_on_without_its_shell(tmp_path: Path, cluster: SlurmCluster) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE)
    done = command(tmp_path, "apply", str(recipe), "--executor", "slurm", "--detach")
    assert done.returncode == 0, done.stderr
    shown = seen = ""
    limit = time.monotonic() + 500
    while "done" not in shown and time.monotonic() < limit:
        time.sleep(2)
        shown = command(tmp_path, "jobs").stdout
        assert "failed" not in shown, shown
        if not seen and (jobs := [path.name for path in (tmp_path / "jobs").glob("tiny-*")]):
            text = command(tmp_path, "jobs", "show", jobs[0]).stdout
            seen = text if "batch job" in text else ""
    assert "done" in shown, shown
    assert "_log.err" in "".join(seen.split())  # the path of the log may be on two lines


_RECIPE = """\
version: 1
name: tiny
model: {source: demo:tiny-llama}
data:
  text: {source: demo:stdlib, split: evaluation, samples: 8, sequence_length: 64}
steps:
  - quantize.rtn: {bits: 4, group_size: 32}
  - evaluate.perplexity: {data: text}
    id: quality
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of runner from a shell that ends with it."""
    environment = {**os.environ, "RUNNER_JOBS": str(folder / "jobs"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "runner", *words], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=False, timeout=900)  # fmt: skip


def _ignore(_: str) -> None: ...
