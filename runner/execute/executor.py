"""The protocol of executors, which compute steps for the scheduler: in worker processes here, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

from runner.execute.job_run import JobRun
from runner.job.entries import StoreEntry
from runner.plan.resources import Demand
from runner.plan.types import PlannedStep
from runner.progress.events import Event


@dataclass(frozen=True, eq=False)
class Task:
    """A step to compute for a job, from `entries`: the results of the steps before it, by id."""

    run: JobRun
    step: PlannedStep
    entries: Mapping[str, StoreEntry]
    demand: Demand = field(default_factory=Demand)


@dataclass(frozen=True)
class Ended:
    """The end of a task.

    `code` is 0 where its result is committed, Interrupted.exit_code where it stopped at a safe point or was killed on
    request, else the exit code of the failure, whose `step_failed` event came before. `error` is an exception that no
    step raised: the executor itself failed.
    """

    code: int
    error: BaseException | None = None


Reports = SimpleQueue[tuple[Task, "Event | Ended"]]


class Executor(Protocol):
    """Computes steps whose inputs are in the store and commits their results there. It never decides what runs.

    One thread, the scheduler's, calls it; `stop` and `kill` may come from a signal handler in that thread. The events
    of a task and then its Ended arrive in the queue of reports that the executor was made with.
    """

    def is_full(self) -> bool:
        """Return whether no task at all can start now."""
        ...

    def has_room(self, task: Task) -> bool:
        """Return whether a task can start now. One that nothing else holds up can always start."""
        ...

    def start(self, task: Task) -> None:
        """Start a task. Raises RunnerError where it cannot, such as an input that is not on this machine."""
        ...

    def release(self, task: Task) -> None:
        """Release what a task held. The scheduler calls it once it has read the task's Ended."""
        ...

    def stop(self, tasks: Iterable[Task] | None = None) -> None:
        """Ask tasks to stop at their next safe point: those given, else all."""
        ...

    def kill(self) -> None:
        """End all tasks at once; their results so far stay in the store."""
        ...

    def close(self) -> None:
        """End its processes. May be called at any time, also twice."""
        ...


Maker = Callable[[Reports], Executor]


class Followers:
    """Threads that follow running tasks and report their end, whatever it is."""

    def __init__(self, reports: Reports, most: int) -> None:
        self._reports = reports
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="follow")

    def follow(self, task: Task, work: Callable[[Task], int]) -> None:
        """Call `work(task)`, which sends the task's events and returns its exit code, in a thread."""

        def report(done: Future[int]) -> None:
            error = done.exception()
            self._reports.put((task, Ended(1, error) if error is not None else Ended(done.result())))

        self._threads.submit(work, task).add_done_callback(report)

    def close(self) -> None:
        self._threads.shutdown(wait=False)
