"""What the scheduler costs: many tiny steps on this machine, and a simulated cluster.

    python -m benchmarks.scheduling --jobs 100 --at-once 1 2
    python -m benchmarks.scheduling --simulate --jobs 1000 --nodes 64 --seconds 1 10 60

Jobs have three steps that compute nothing (those of the tests); all share the first. The simulation runs the real
scheduler, store and logs of events, with an executor whose steps take a given time of a clock that also advances by
what the scheduler itself takes: with the measured overhead of a step on its node, the makespan is what a cluster would
need, and its excess over the work of the busiest node names the bottleneck.
"""

from __future__ import annotations

import argparse
import heapq
import os
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from runner.execute.application import Job, Manner, apply_all
from runner.execute.executor import Ended, Reports, Task
from runner.execute.job_run import JobRun
from runner.execute.job_session import JobSession
from runner.execute.job_steps import JobSteps
from runner.execute.requests import request
from runner.execute.scheduler import Scheduler
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.execute.worker.server import Worker
from runner.job.directory import JobDirectory
from runner.job.store import Store
from runner.plan.types import Plan
from tests.execute.applying import KINDS
from tests.execute.shipping import located


def plans(folder: Path, jobs: int) -> list[Plan]:
    """Return jobs of three steps that share the first one."""
    made = []
    for number in range(jobs):
        steps: list[dict[str, Any]] = [
            {"id": "prune", "kind": "fake.layers", "params": {"layers": 1}},
            {"id": "quantize", "kind": "fake.layers", "params": {"layers": 1, "number": number}},
            {"id": "quality", "kind": "fake.score", "params": {"loss": 0.5, "n": number}, "produces": "metrics"},
        ]
        made.append(located(steps, folder, f"job{number}"))
    return made


def processor_seconds() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def applied(given: list[Plan], folder: Path, settings: ApplySettings, manner: Manner) -> None:
    stopping = Stopping()
    ends = apply_all([Job(p, None, []) for p in given], settings, jobs_root=folder, stopping=stopping, manner=manner)
    if any(end.code for end in ends):
        raise SystemExit(f"jobs ended with {[end.code for end in ends]}")


def tiny_steps(jobs: int, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        given = plans(Path(name), jobs)
        steps = 2 * jobs + 1
        begun, before = time.perf_counter(), processor_seconds()
        applied(given, Path(name) / "jobs", ApplySettings("again", threads=1, jobs_at_once=at_once), Manner())
        wall, used = time.perf_counter() - begun, processor_seconds() - before
        print(
            f"{jobs} jobs, {steps} steps, {at_once} at once: {wall:.1f} s, {wall / steps * 1e3:.0f} ms a step, "
            f"of which {used / steps * 1e3:.0f} ms of a processor"
        )


class Cluster:
    """An executor and its queue of reports on a clock of their own; steps are committed by this process meanwhile."""

    def __init__(self, nodes: int, seconds: float) -> None:
        self.nodes, self.seconds = nodes, seconds
        self.clock = self.scheduling = self.busy = 0.0
        self._worker = Worker(os.open(os.devnull, os.O_WRONLY))
        self._running: list[tuple[float, int, Task]] = []
        self._count = 0
        self._since = time.perf_counter()

    def begin(self) -> None:
        self._since = time.perf_counter()

    def get(self, timeout: float | None = None) -> tuple[Task, Ended]:
        """Return the next end of a step. What the scheduler took since its last question passes on the clock."""
        took = time.perf_counter() - self._since
        self.scheduling += took
        self.clock += took
        ends, _, task = heapq.heappop(self._running)
        self.clock = max(self.clock, ends)
        self._since = time.perf_counter()
        return task, Ended(0)

    def is_full(self) -> bool:
        return len(self._running) >= self.nodes

    def has_room(self, task: Task) -> bool:
        return not self.is_full()

    def start(self, task: Task) -> None:
        begun = time.perf_counter()
        run = task.run
        asked = request(run.plan, task.step, task.entries, run.store.root, run.settings)
        after = time.perf_counter()
        self._worker.serve(asked)
        self._since += time.perf_counter() - after  # a node does this
        self._count += 1
        self.busy += self.seconds
        heapq.heappush(self._running, (self.clock + (after - begun) + self.seconds, self._count, task))

    def release(self, task: Task) -> None: ...
    def stop(self, tasks: Iterable[Task] | None = None) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


def simulate(jobs: int, nodes: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        cluster, stopping = Cluster(nodes, seconds), Stopping()
        store = Store(Path(name) / "jobs" / "store")
        store.prepare()
        settings = ApplySettings("again", threads=1)
        given = []
        for plan in plans(Path(name), jobs):
            directory = JobDirectory(store.root.parent, plan.job_id)
            run = JobRun(plan, directory, store, settings, stopping, [], {})
            given.append(JobSteps(JobSession(run, None)))
        cluster.begin()
        Scheduler(given, cluster, cast(Reports, cluster), stopping).work()
        if not all(job.is_done for job in given):
            raise SystemExit("a job was not finished")
        steps = 2 * jobs + 1
        ideal = seconds * (1 + -(-2 * jobs // nodes))
        print(
            f"{jobs} jobs on {nodes} nodes, steps of {seconds:g} s: {cluster.clock:.1f} s, at best {ideal:.1f} s; "
            f"nodes busy {cluster.busy / cluster.clock / nodes:.0%}; the scheduler takes "
            f"{cluster.scheduling / steps * 1e3:.1f} ms a step, so that it feeds at most "
            f"{seconds * steps / cluster.scheduling:.0f} nodes",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 60.0])
    arguments = parser.parse_args()
    os.environ["RUNNER_STEPS_PATH"] = str(KINDS)
    if arguments.simulate:
        for seconds in arguments.seconds:
            simulate(arguments.jobs, arguments.nodes, seconds)
    else:
        for at_once in arguments.at_once:
            tiny_steps(arguments.jobs, at_once)


if __name__ == "__main__":
    main()
