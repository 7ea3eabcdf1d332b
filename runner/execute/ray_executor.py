"""The executor of a Ray cluster: each step is an actor with the step's resources, which Ray places on a machine.

An actor and not a task, since a running step must be able to receive a stop. It runs the same worker process as the
executor of this machine. The shared store holds what it finished, so that a step whose machine is lost continues on
another one from its last layer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from runner.errors import Interrupted, MachineError
from runner.execute import node_step
from runner.execute.executor import Followers, Reports, Task
from runner.execute.node_step import NodeStep, Shipment
from runner.execute.ray_cluster import RayCluster
from runner.plan.resources import Offer, threads_of
from runner.progress.events import Event, make

_ATTEMPTS = 3  # of a step in a row that finish no layer
_POLL = 1.0  # seconds in which a stop is noticed
_MOST = 256  # steps that are handed to Ray at once; it queues those without a place


class _Lost(Exception):
    """The machine or the worker of a step was lost; the text says how."""


class RayExecutor:
    """An executor (runner.execute.executor) on a cluster. `remote`: the URL of the store, where no folder is shared.

    Threads follow the actors and make every call to Ray, so that a signal handler only sets flags.
    """

    def __init__(self, reports: Reports, cluster: RayCluster, remote: str | None, at_once: int | None = None) -> None:
        self._reports = reports
        self._remote = remote
        self._offer = cluster.offer()
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
        """Run a task on one machine after another until it ends; return its exit code."""
        about = {"step": task.step.index, "id": task.step.id, "kind": task.step.kind}
        attempts = 0
        while True:
            attempt = _Attempt(self._offer, task, shipped)
            try:
                return self._read(task, attempt)
            except _Lost as lost:
                if self._killed.is_set() or self._is_stopped(task):
                    return Interrupted.exit_code
                attempts = 1 if attempt.advanced else attempts + 1
                if attempts >= _ATTEMPTS:
                    error = f"the step lost its worker {attempts} times without finishing a layer: {lost}"
                    help = "`runner doctor --executor ray` examines the cluster; the same command continues"
                    code = MachineError.exit_code
                    failed = make("step_failed", **about, error=error, help=help, exit_code=code, log=None)
                    self._reports.put((task, failed))
                    return code
                text = f"`{task.step.id}`: {lost}; it continues on another one"
                self._reports.put((task, make("message", step=task.step.index, level="warning", text=text)))
            finally:
                attempt.end(at_once=self._killed.is_set())

    def _read(self, task: Task, attempt: _Attempt) -> int:
        """Send on the events of an attempt; return the exit code. Raises _Lost."""
        asked = False
        attempt.begin()
        while True:
            if self._killed.is_set():
                return Interrupted.exit_code
            if self._is_stopped(task) and not asked:
                asked = True
                if not attempt.ask_to_stop():  # no machine has taken it yet
                    return Interrupted.exit_code
            for event in attempt.events():
                match event["event"]:
                    case "interrupted":
                        return Interrupted.exit_code
                    case node_step.DIED:
                        raise _Lost(f"on {attempt.host} {event['error'].splitlines()[0]}")
                self._reports.put((task, event))
                match event["event"]:
                    case "step_failed":
                        return int(event["exit_code"])
                    case "step_finished" | "step_cached":
                        return 0


class _Attempt:
    """One actor for a step. `host` is its machine once it has begun; `advanced` is true once it finished a layer."""

    def __init__(self, offer: Offer, task: Task, shipped: Shipment) -> None:
        import ray

        self.host = "a machine"
        self.advanced = False
        self._begun = False
        self._actor = ray.remote(NodeStep).options(**options(offer, task)).remote(shipped)
        self._pending: Any = None

    def begin(self) -> None:
        self._pending = self._actor.begin.remote()

    def events(self) -> list[Event]:
        """Return new events, [] after a while without any. Raises _Lost."""
        import ray

        try:
            found = ray.get(self._pending, timeout=_POLL)
            if not self._begun:
                self._begun, self.host = True, found
                found = []
            self._pending = self._actor.events.remote(_POLL)
        except ray.exceptions.GetTimeoutError:
            return []
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            raise _Lost(f"the worker on {self.host} was lost ({reason})") from None
        events: list[Event] = found
        self.advanced = self.advanced or any(event["event"] in ("layer", "train") for event in events)
        return events

    def ask_to_stop(self) -> bool:
        """Ask the step to stop; return False where it has not begun."""
        if self._begun:
            self._actor.stop.remote()
        return self._begun

    def end(self, *, at_once: bool) -> None:
        """End the actor and its worker."""
        import ray

        try:
            if self._begun and not at_once:
                ray.get(self._actor.close.remote(), timeout=15)
        except (ray.exceptions.RayError, TimeoutError):
            pass  # it is gone, or is killed now
        ray.kill(self._actor)


def options(offer: Offer, task: Task) -> dict[str, Any]:
    """Return the options of Ray for a step: its processors are its threads, unless it asks for another number.

    A step that measures a machine takes all processors of the largest one.
    """
    demand = task.demand
    most = max((node.cpus for node in offer.nodes), default=1)
    cpus = demand.cpus or min(threads_of(task.step, task.run.settings.thread_count), most)
    return {
        "num_cpus": most if demand.alone else cpus, "num_gpus": demand.gpus, "memory": demand.memory or None,
        "resources": dict(demand.custom), "max_concurrency": 4, "max_restarts": 0,
    }  # fmt: skip
