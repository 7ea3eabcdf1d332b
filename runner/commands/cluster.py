"""Connect to the executor that a command names, for as long as the command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.commands.options import ExecutorOptions
    from runner.execute.executor import Maker
    from runner.plan.resources import Offer


@dataclass(frozen=True)
class Connected:
    """`offer`: the machines of the executor; `maker` makes it. Both None for the executor of this machine."""

    offer: Offer | None = None
    maker: Maker | None = None


@contextmanager
def connected(how: ExecutorOptions, remote: str | None, jobs: Path) -> Iterator[Connected]:
    """Connect to an executor, and check that its machines can compute.

    `remote` is the URL of a store that machines share; without it they must share the folder `jobs`. Raises UsageError
    for an address that the executor does not take, MachineError where the cluster does not answer or cannot compute.
    """
    if how.name != "ray" and how.address is not None:
        raise UsageError("`--address` names a Ray cluster", "add `--executor ray`, or leave it out")
    if how.name != "slurm" and how.sbatch:
        raise UsageError("`--slurm` gives options of Slurm", "add `--executor slurm`, or leave it out")
    if how.name == "local":
        yield Connected()
    elif how.name == "slurm":
        yield _slurm(how, remote, jobs.absolute() / "store")
    else:
        with _ray(how, remote, jobs.absolute() / "store") as found:
            yield found


def _slurm(how: ExecutorOptions, remote: str | None, store: Path) -> Connected:
    from runner.execute import slurm_executor

    if remote is not None:
        help = "leave out `--remote`, and use a jobs folder that all machines share"
        raise UsageError("`--executor slurm` works in a shared folder, not with a remote store", help)
    given = {}
    for option in how.sbatch:
        name, equals, value = option.partition("=")
        if not (name and equals and value):
            raise UsageError(f"`--slurm {option}` is not of the form name=value", "write `--slurm partition=gpu`")
        given[name.replace("-", "_")] = value
    offer = slurm_executor.offer(given.get("cluster", "slurm"))
    return Connected(offer, lambda reports: slurm_executor.make(reports, store, given, how.at_once))


@contextmanager
def _ray(how: ExecutorOptions, remote: str | None, store: Path) -> Iterator[Connected]:
    from runner.execute import ray_executor
    from runner.execute.ray_cluster import RayCluster

    cluster = RayCluster(how.address)
    try:
        cluster.check(None if remote else store, remote)
        yield Connected(cluster.offer(), lambda reports: ray_executor.make(reports, cluster, remote, how.at_once))
    finally:
        cluster.close()
