"""Apply many jobs with a shared first step in a process of its own: `python -m tests.execute.driving FOLDER JOBS …`.

The steps compute nothing. Layers of every step leave a line in a file `trace-…` of the folder once they are finished.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from runner.execute.executor import Maker
from runner.plan.types import Plan
from tests.execute.applying import KINDS, ROOT
from tests.execute.shipping import applied, located

LAYERS, PAUSE = 3, 0.2


def plans(folder: Path, count: int) -> list[Plan]:
    """Return `count` jobs of three steps that share their first one."""
    own: dict[str, Any] = {"pause": PAUSE, "layers": LAYERS}
    made = []
    for index in range(count):
        steps: list[dict[str, Any]] = [
            {"id": "prune", "kind": "fake.layers", "params": {"trace": str(folder / "trace-shared"), **own}},
            {"id": "quantize", "kind": "fake.layers",
             "params": {"bits": index, "trace": str(folder / f"trace-{index}"), **own}},
            {"id": "quality", "kind": "fake.score", "params": {"loss": 0.5 * index}, "produces": "metrics"},
        ]  # fmt: skip
        made.append(located(steps, folder, f"job{index}"))
    return made


def start(
    folder: Path, jobs: Path, *options: str, prefix: tuple[str, ...] = (), variables: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-m", "tests.execute.driving", str(folder), str(jobs), *options]
    environment = {**os.environ, "RUNNER_STEPS_PATH": str(KINDS), **(variables or {})}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment)  # fmt: skip


def repeated(folder: Path) -> list[str]:
    """Return the layers that were finished more than once."""
    lines = [f"{path.name}: {line}" for path in folder.glob("trace-*") for line in path.read_text().splitlines()]
    return [line for line, count in Counter(lines).items() if count > 1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--address")
    parser.add_argument("--remote")
    given = parser.parse_args()
    cluster, maker = None, None
    if given.address:
        from runner.execute import ray_executor
        from runner.execute.ray_cluster import RayCluster

        cluster = RayCluster(given.address)
        cluster.check(None if given.remote else given.jobs / "store", given.remote)
        maker = _maker(ray_executor, cluster, given.remote)
    codes, kept = applied(plans(given.folder, given.count), given.jobs, maker, remote=given.remote)
    for sink in kept:
        for event in sink.named("step_failed", "message"):
            print(event.get("error") or event["text"], file=sys.stderr)
    if cluster is not None:
        cluster.close()
    sys.exit(max(code or 0 for code in codes))


def _maker(executor: Any, cluster: Any, remote: str | None) -> Maker:
    made: Maker = lambda reports: executor.make(reports, cluster, remote)  # noqa: E731
    return made


if __name__ == "__main__":
    main()
