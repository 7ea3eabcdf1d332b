"""Kill parts of a Ray cluster and its drivers at random moments, and hold what comes out to a run on this machine.

    python -m benchmarks.ray_kills --kills 50

Four jobs of three steps share their first one. They are applied to a cluster of three nodes, each a raylet with
processes of its own; at random moments the worker of a step, an entire node (another one joins instead) or the driver
is killed with SIGKILL, and the driver is started again until all jobs are done. Checked at the end of every round:
every digest equals that of this machine, and no layer was finished twice. Steps are those of the tests, which compute
nothing: what is tried is the scheduler, the executor and the store.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.errors import MachineError
from runner.job import locks
from runner.job.store import Store
from runner.plan.types import Plan
from tests.execute.applying import KINDS
from tests.execute.shipping import applied, located

LAYERS, PAUSE = 6, 0.15
GAVE_UP = "gave up"  # instead of a kill: a driver that ended since it could not run a step


def plans(folder: Path) -> list[Plan]:
    """Return four jobs; each layer takes PAUSE seconds and leaves a line in a file `trace-…` once it is finished."""
    own: dict[str, Any] = {"pause": PAUSE, "layers": LAYERS}
    made = []
    for bits in (2, 3, 4, 8):
        steps: list[dict[str, Any]] = [
            {"id": "prune", "kind": "fake.layers", "params": {"trace": str(folder / "trace-0"), **own}},
            {
                "id": "quantize",
                "kind": "fake.layers",
                "params": {"bits": bits, "trace": str(folder / f"trace-{bits}"), **own},
            },
            {"id": "quality", "kind": "fake.score", "params": {"loss": 0.5 * bits}, "produces": "metrics"},
        ]
        made.append(located(steps, folder, f"job{bits}"))
    return made


def drive(folder: Path, jobs: Path, address: str | None) -> None:
    """Apply the jobs on the cluster at `address`, or on this machine; exit 1 where one does not end well.

    Exit with the code of MachineError where a step lost its worker thrice without finishing a layer, which ends it.
    """
    from runner.execute import ray_executor
    from runner.execute.ray_cluster import RayCluster

    cluster = None if address is None else RayCluster(address)
    maker = None if cluster is None else lambda reports: ray_executor.make(reports, cluster, None)
    codes, kept = applied(plans(folder), jobs, maker)
    if cluster is not None:
        cluster.close()
    if any(codes):
        errors = [event["error"] for sink in kept for event in sink.named("step_failed")]
        print(f"jobs ended with {codes}: {errors}", file=sys.stderr)
        sys.exit(MachineError.exit_code if all("lost its worker" in text for text in errors) else 1)


def start(folder: Path, jobs: Path, address: str | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.ray_kills", "--drive", str(folder), str(jobs), address or ""]
    environment = {**os.environ, "RUNNER_STEPS_PATH": str(KINDS)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def digests(jobs: Path) -> dict[str, str]:
    store = Store(jobs / "store")
    return {key: entry.record.digest for key in sorted(store.keys()) if (entry := store.entry(key)) is not None}


def repeated(folder: Path) -> list[str]:
    """Return the layers that were finished more than once."""
    lines = [f"{path.name}: {line}" for path in folder.glob("trace-*") for line in path.read_text().splitlines()]
    return [line for line, count in Counter(lines).items() if count > 1]


def forget(folder: Path) -> None:
    for path in folder.glob("trace-*"):
        path.unlink()


class Nodes:
    """A cluster whose head runs no steps, and three nodes that each run one at a time."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        environment = {"RUNNER_STEPS_PATH": str(KINDS)}
        os.environ.update(environment)
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self._cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(3)]
        self.address: str = self._cluster.address

    def kill_one(self, chance: random.Random) -> None:
        """Kill a node with all of its processes; another one takes its place."""
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1, include_dashboard=False))

    def close(self) -> None:
        self._cluster.shutdown()


def strike(driver: subprocess.Popen[bytes], jobs: Path, nodes: Nodes, chance: random.Random) -> str:
    """Kill a driver, a node, or the worker of a step, for which it waits a while; return which."""
    what = chance.choice(("driver", "node", "worker"))
    if what == "worker":
        limit = time.monotonic() + 30
        while time.monotonic() < limit and driver.poll() is None:
            held = [locks.holder(path) for path in sorted((jobs / "store" / ".locks").glob("*.lock"))]
            pids = sorted(holder.pid for holder in held if holder is not None and holder.pid)
            if pids:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(pids), signal.SIGKILL)
                return "worker"
            time.sleep(0.02)
        what = "node"
    if what == "node":
        nodes.kill_one(chance)
    else:
        driver.kill()
    return what


def one_round(folder: Path, jobs: Path, nodes: Nodes, longest: float, chance: random.Random, budget: int) -> list[str]:
    """Apply until all jobs are done, killing at most `budget` times; return what was killed."""
    killed: list[str] = []
    while True:
        driver = start(folder, jobs, nodes.address)
        while driver.poll() is None:
            try:
                driver.wait(timeout=chance.uniform(0.2, longest) if len(killed) < budget else None)
            except subprocess.TimeoutExpired:
                killed.append(strike(driver, jobs, nodes, chance))
        if driver.returncode == 0:
            return killed
        if driver.returncode == MachineError.exit_code:
            killed.append(GAVE_UP)
        elif driver.returncode != -signal.SIGKILL:
            errors = driver.stderr.read().decode() if driver.stderr else ""
            sys.exit(f"the driver exited {driver.returncode} after {killed}: {errors[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=3, metavar=("FOLDER", "JOBS", "ADDRESS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        folder, jobs, address = arguments.drive
        drive(Path(folder), Path(jobs), address or None)
        return
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nodes = Nodes()
        try:
            if start(folder, folder / "local", None).wait():
                sys.exit("the jobs do not end on this machine")
            expected = digests(folder / "local")
            begun = time.perf_counter()
            forget(folder)
            one_round(folder, folder / "whole", nodes, 0, chance, budget=0)
            seconds = time.perf_counter() - begun
            if digests(folder / "whole") != expected or len(expected) != 9:
                sys.exit("an undisturbed run on the cluster differs from one on this machine")
            print(f"undisturbed: {seconds:.1f} s on the cluster, {len(expected)} results equal to this machine's")
            killed: Counter[str] = Counter()
            rounds = gave_up = 0
            while killed.total() < arguments.kills:
                forget(folder)
                jobs = folder / "killed"
                found = one_round(folder, jobs, nodes, seconds / 2, chance, arguments.kills - killed.total())
                killed.update(what for what in found if what != GAVE_UP)
                gave_up += found.count(GAVE_UP)
                rounds += 1
                print(f"round {rounds}: {', '.join(found) or 'none'}", flush=True)
                if digests(jobs) != expected:
                    sys.exit(f"the result differs: {digests(jobs)} instead of {expected}")
                if repeated(folder):
                    sys.exit(f"layers were finished twice: {repeated(folder)}")
                shutil.rmtree(jobs)
            kinds = ", ".join(f"{count} {what}s" for what, count in sorted(killed.items()))
            print(f"{killed.total()} kills ({kinds}) in {rounds} rounds: every digest equal, no layer finished twice")
            print(
                f"{gave_up} times a step lost its worker thrice without finishing a layer, and the driver began again"
            )
        finally:
            nodes.close()


if __name__ == "__main__":
    main()
