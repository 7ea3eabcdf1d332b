"""Connect to the executor that a command names, for as long as the command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.execute.executor import Executor, Maker, Reports
    from runner.plan.resources import Offer


@dataclass(frozen=True)
class Connected:
    """`offer`: the machines of the executor; `maker` makes it. Both None for the executor of this machine."""

    offer: Offer | None = None
    maker: Maker | None = None


@contextmanager
def connected(
    executor: str, address: str | None, at_once: int | None, remote: str | None, jobs: Path
) -> Iterator[Connected]:
    """Connect to an executor, and check that its machines can compute.

    `remote` is the URL of a store that machines share; without it they must share the folder `jobs`. Raises UsageError
    for an address that the executor does not take, MachineError where the cluster does not answer or cannot compute.
    """
    if executor == "local":
        if address is not None:
            raise UsageError("`--address` names a Ray cluster", "add `--executor ray`, or leave it out")
        yield Connected()
        return
    from runner.execute.ray_cluster import RayCluster
    from runner.execute.ray_executor import RayExecutor

    cluster = RayCluster(address)
    try:
        cluster.check(None if remote else jobs.absolute() / "store")

        def make(reports: Reports) -> Executor:
            return RayExecutor(reports, cluster, remote, at_once)

        yield Connected(cluster.offer(), make)
    finally:
        cluster.close()
