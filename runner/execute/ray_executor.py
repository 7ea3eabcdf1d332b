"""Steps on a Ray cluster: each is an actor with the step's resources, which Ray places on a machine.

An actor and not a task, since a running step must be able to receive a stop. It runs the same worker process as the
executor of this machine.
"""

from __future__ import annotations

from typing import Any

from runner.execute.executor import Reports, Task
from runner.execute.node_step import NodeStep, Shipment
from runner.execute.ray_cluster import RayCluster
from runner.execute.remote_executor import Lost, RemoteExecutor
from runner.plan.resources import Offer, threads_of
from runner.progress.events import Event

_POLL = 1.0  # seconds in which a stop is noticed


def make(reports: Reports, cluster: RayCluster, remote: str | None, at_once: int | None = None) -> RemoteExecutor:
    """Return the executor of a cluster. `remote`: the URL of the store, where its machines share no folder."""
    offer = cluster.offer()
    return RemoteExecutor(reports, lambda task, shipped: RayAttempt(options(offer, task), shipped), remote, at_once)


class RayAttempt:
    """One actor for a step (runner.execute.remote_executor.Attempt)."""

    def __init__(self, how: dict[str, Any], shipped: Shipment) -> None:
        self.host = "a machine"
        self._how, self._shipped = how, shipped
        self._actor: Any = None
        self._begun = False
        self._pending: Any = None

    def begin(self) -> None:
        import ray

        self._actor = ray.remote(NodeStep).options(**self._how).remote(self._shipped)
        self._pending = self._actor.begin.remote()

    def events(self) -> list[Event]:
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
            raise Lost(f"the worker on {self.host} was lost ({reason})") from None
        events: list[Event] = found
        return events

    def ask_to_stop(self) -> bool:
        if self._begun:
            self._actor.stop.remote()
        return self._begun

    def end(self, *, at_once: bool) -> None:
        import ray

        try:
            if self._begun and not at_once:
                ray.get(self._actor.close.remote(), timeout=15)
        except (ray.exceptions.RayError, TimeoutError):
            pass  # it is gone, or is killed now
        if self._actor is not None:
            ray.kill(self._actor)


def options(offer: Offer, task: Task) -> dict[str, Any]:
    """Return the options of Ray for a step: its processors are its threads, unless it asks for another number.

    A step that measures a machine takes all processors of the largest one.
    """
    demand = task.demand
    most = max((node.cpus for node in offer.nodes), default=1)
    cpus = demand.cpus or min(threads_of(task.step, task.run.settings.thread_count), most)
    where: dict[str, Any] = {}
    if demand.processor is not None:
        ids = [node.id for node in offer.nodes if node.has_processor(demand.processor)]
        where = {"label_selector": {"ray.io/node-id": f"in({','.join(ids)})"}}
    return {
        "num_cpus": most if demand.alone else cpus, "num_gpus": demand.gpus, "memory": demand.memory or None,
        "resources": dict(demand.custom), "max_concurrency": 4, "max_restarts": 0, **where,
    }  # fmt: skip
