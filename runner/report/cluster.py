"""Examine a Ray cluster: does it answer, what has it, has every machine the same versions and the jobs folder."""

from __future__ import annotations

from pathlib import Path

from runner.errors import RunnerError
from runner.execute.ray_cluster import STORE_HELP, VERSIONS_HELP, RayCluster, wrong
from runner.report.doctor import Finding


def examine(address: str | None, store: Path) -> list[Finding]:
    """Return the findings on a cluster, that it answers first; `store` is the folder that its machines must share."""
    try:
        cluster = RayCluster(address)
    except RunnerError as error:
        return [Finding("cluster", "fail", error.message, error.help)]
    try:
        found = [Finding("cluster", "ok", f"{cluster.name}: {cluster.offer().text()}")]
        for machine in cluster.examine(store):
            if different := wrong([machine]):
                found.append(Finding("machine", "fail", different[0], VERSIONS_HELP))
            elif not machine.has_store:
                text = f"{machine.host} does not see {store}: only a remote store can be used"
                found.append(Finding("machine", "warn", text, STORE_HELP))
            else:
                text = f"{machine.host} has the same versions as this machine, and sees {store}"
                found.append(Finding("machine", "ok", text))
        return found
    finally:
        cluster.close()
