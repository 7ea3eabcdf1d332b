"""The executor of machines elsewhere: each step is an attempt that a cluster places, and a lost one is made again.

The shared store holds what a step finished, so that one whose machine is lost continues on another from its last layer.
Clusters differ in their attempts alone (ray_executor, slurm_executor).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from runner.errors import Interrupted, MachineError
from runner.execute import node_step
from runner.execute.executor import Followers, Reports, Task
from runner.execute.node_step import Shipment
from runner.progress.events import Event, make

_ATTEMPTS = 3  # of a step in a row that finish no layer
_MOST = 256  # steps that a cluster is given at once; it queues those without a place


class Lost(Exception):
    """The machine or the worker of a step was lost; the text is a clause that says how."""


class Attempt(Protocol):
    """A step that a cluster places on a machine and runs. Its methods are called by one thread."""

    @property
    def host(self) -> str:
        """The machine, or words for one that is not known yet."""
        ...

    def begin(self) -> None:
        """Hand the step to the cluster. Raises RunnerError where it refuses."""
        ...

    def events(self) -> list[Event]:
        """Return new events, [] after a second or so without any. Raises Lost."""
        ...

    def ask_to_stop(self) -> bool:
        """Ask for a stop at the next safe point; return False where no machine has taken the step yet."""
        ...

    def end(self, *, at_once: bool) -> None:
        """Release what the step holds; `at_once` without waiting for it."""
        ...


class RemoteExecutor:
    """An executor (runner.execute.executor) that runs steps by `attempt`.

    `remote`: the URL of the store, where no folder is shared. `at_once`: the most steps that the cluster is given.
    Threads follow the attempts and make every call to the cluster, so that a signal handler only sets flags.
    """

    def __init__(
        self,
        reports: Reports,
        attempt: Callable[[Task, Shipment], Attempt],
        remote: str | None,
        at_once: int | None = None,
    ) -> None:
        self._reports = reports
        self._attempt = attempt
        self._remote = remote
        self._most = at_once or _MOST
        self._followers = Followers(reports, self._most)
        self._running: set[Task] = set()
        self._stopped: set[Task] = set()
        self._all_stopped = threading.Event()
        self._killed = threading.Event()

    def is_full(self) -> bool:
        return len(self._running) >= self._most

    def has_room(self, task: Task) -> bool:
        return not self.is_full()

    def start(self, task: Task) -> None:
        shipped = node_step.shipment(task, self._remote)
        self._running.add(task)
        self._followers.follow(task, lambda task: self._follow(task, shipped))

    def release(self, task: Task) -> None:
        self._running.discard(task)
        self._stopped.discard(task)

    def stop(self, tasks: Iterable[Task] | None = None) -> None:
        if tasks is None:
            self._all_stopped.set()
        else:
            self._stopped.update(tasks)

    def kill(self) -> None:
        self._killed.set()

    def close(self) -> None:
        self._killed.set()
        self._followers.close()

    def _is_stopped(self, task: Task) -> bool:
        return self._all_stopped.is_set() or task in self._stopped

    def _follow(self, task: Task, shipped: Shipment) -> int:
        """Make attempts at a task until one ends; return its exit code."""
        about = {"step": task.step.index, "id": task.step.id, "kind": task.step.kind}
        lost_in_a_row = 0
        while True:
            attempt = self._attempt(task, shipped)
            before, advanced = _progress(task), False
            try:
                for event in self._events(task, attempt):
                    advanced = advanced or event["event"] in ("layer", "train")
                    self._reports.put((task, event))
                    match event["event"]:
                        case "step_failed":
                            return int(event["exit_code"])
                        case "step_finished" | "step_cached":
                            return 0
                return Interrupted.exit_code
            except Lost as lost:
                if self._killed.is_set() or self._is_stopped(task):
                    return Interrupted.exit_code
                # The events of its last layers may be lost with the machine; what it finished is in a shared store.
                lost_in_a_row = 1 if advanced or _progress(task) != before else lost_in_a_row + 1
                if lost_in_a_row >= _ATTEMPTS:
                    error = f"the step lost its worker {lost_in_a_row} times without finishing a layer: {lost}"
                    help = "`runner doctor` examines the cluster (`--executor`); the same command continues"
                    code = MachineError.exit_code
                    failed = make("step_failed", **about, error=error, help=help, exit_code=code, log=None)
                    self._reports.put((task, failed))
                    return code
                text = f"`{task.step.id}`: {lost}; it continues on another one"
                self._reports.put((task, make("message", step=task.step.index, level="warning", text=text)))
            finally:
                attempt.end(at_once=self._killed.is_set())

    def _events(self, task: Task, attempt: Attempt) -> Iterable[Event]:
        """Yield the events of an attempt; end where it was interrupted, killed, or never began. Raises Lost."""
        asked = False
        attempt.begin()
        while not self._killed.is_set():
            if self._is_stopped(task) and not asked:
                asked = True
                if not attempt.ask_to_stop():
                    return
            for event in attempt.events():
                if event["event"] == "interrupted":
                    return
                if event["event"] == node_step.DIED:
                    raise Lost(f"on {attempt.host} {event['error'].splitlines()[0]}")
                yield event


def _progress(task: Task) -> tuple[int, int] | None:
    """Return the layers or training steps of a task that are finished in the store, and how many there are."""
    return task.run.store.partial(task.step.key)
