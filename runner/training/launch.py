"""Start several processes that train together on this machine, forward their events, stop them, raise their errors.

    this process ── runner.training.ranks agent ──┬── rank 0    writes events.jsonl, polls for `stop`
                    (torch's elastic launcher)    └── rank n    each writes error-<rank>.json when it fails

These files are in <folder>/ranks. Every process ends with the one that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runner.contracts.context import Context
from runner.errors import Interrupted, MachineError, RunnerError, StepFailed
from runner.system.process_errors import first_error
from runner.training import failures, training_checkpoints
from runner.training.task import Task

EVENTS, STOP, TASK = "events.jsonl", "stop", "task.json"
PARENT = "RUNNER_TRAINING_PARENT"  # the process id of the parent: a process that finds another parent exits
_POLL = 0.05


def run(ctx: Context, task: Task, progress: Path) -> None:
    """Train with `task.processes` processes until all have ended.

    Raises Interrupted once all have saved at the same step, or the first error of any of them.
    """
    if task.device == "cuda" and (gpus := torch.cuda.device_count()) < task.processes:
        raise MachineError(
            f"{task.processes} processes are to train, each on a GPU of its own; {gpus} can be used",
            "lower `resources: {processes: N}`, or check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
        )
    folder = task.folder / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    training_checkpoints.write_json(folder / TASK, {**task.to_json(), "progress": str(progress)})
    asked: Interrupted | None = None
    agent = start(folder, task)
    try:
        events = read_new_lines(folder / EVENTS)
        ended = False
        while not ended:
            ended = agent.poll() is not None
            for fields in next(events):
                ctx.emit("train", **fields)
            if asked is None:
                try:
                    ctx.safe_point()
                except Interrupted as error:
                    asked = error
                    (folder / STOP).touch()
            if not ended:
                time.sleep(_POLL)
    finally:
        if agent.poll() is None:
            agent.kill()  # its ranks end with it
        agent.wait()
    failed = failure(folder, task, agent.returncode)
    if failed is not None:
        raise failed
    if asked is not None and not (folder / "done").exists():
        raise asked


def start(folder: Path, task: Task) -> subprocess.Popen[bytes]:
    """Start the agent, which starts the ranks; their output goes to the stderr of this process."""
    environment = {
        **os.environ,
        PARENT: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads(task)),
        "MKL_NUM_THREADS": str(threads(task)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if task.device == "cpu" and sys.platform.startswith("linux"):
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # independent of how the host name resolves
    command = [sys.executable, "-m", "runner.training.ranks", "agent", str(folder)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def threads(task: Task) -> int:
    """Return the number of threads of one process."""
    return max(1, task.threads // task.processes)


def read_new_lines(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield, at each `next`, the complete lines added to a file of JSON lines since the last one."""
    offset = 0
    while True:
        found: list[dict[str, Any]] = []
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                complete, newline, _ = file.read().rpartition(b"\n")
            offset += len(complete) + len(newline)
            found = [json.loads(line) for line in complete.splitlines()]
        yield found


def failure(folder: Path, task: Task, returncode: int) -> RunnerError | None:
    """Return the first error of the processes, which caused the others; None where none failed."""
    found = first_error(folder, "training process")
    if found is not None or returncode == 0:
        return found
    killed = folder / "killed.json"
    if killed.exists():
        length = json.loads(killed.read_text(encoding="utf-8"))["length"]
        return failures.out_of_memory(task, length, "a training process was killed (SIGKILL), probably for its memory")
    return StepFailed(
        f"the training processes ended with status {returncode} and gave no reason",
        "the log of the step has what they wrote",
    )
