"""The processes of a distributed training: `python -m runner.training.ranks agent|rank FOLDER`.

The agent starts the ranks with torch's elastic launcher. Each ends when its parent does, and ignores the signals that a
terminal sends to all processes: a stop is requested by the file `stop`, which rank 0 sees and sends with the loss.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.system import parent_death
from runner.system.process_errors import write_error
from runner.training.launch import EVENTS, PARENT, STOP, TASK, threads
from runner.training.task import Task


def main(arguments: list[str]) -> None:
    role, folder = arguments[0], Path(arguments[1])
    parent_death.die_with_parent(os.environ.get(PARENT))
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), lambda *_: None)
    (agent if role == "agent" else rank)(folder)


def agent(folder: Path) -> None:
    """Start the ranks and wait for them; exit 1 where one failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    described = json.loads((folder / TASK).read_text(encoding="utf-8"))
    os.environ[PARENT] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=described["processes"],
        run_id=folder.parent.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.05,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
        shutdown_timeout=5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "runner.training.ranks", "rank", str(folder))
    except ChildFailedError as error:
        if any(found.exitcode == -signal.SIGKILL for found in error.failures.values()):
            _killed(folder, described)
        sys.exit(1)


def rank(folder: Path) -> None:
    """Train as one rank. Errors go to a file, with the traceback on stderr."""
    number = int(os.environ["RANK"])
    try:
        from runner.training import session, training_checkpoints

        described = json.loads((folder / TASK).read_text(encoding="utf-8"))
        progress = Path(described.pop("progress"))
        task = Task.from_json(described)
        if session.train(task, hooks(folder, task, progress, number)) and number == 0:
            training_checkpoints.write_json(folder / "done", {})
    except BaseException as error:  # noqa: BLE001  any error goes to the parent process
        traceback.print_exc()
        write_error(folder, number, error)
        sys.stderr.flush()
        os._exit(1)  # a regular exit would wait for the other ranks in the process group
    _leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a rank was once aborted (SIGABRT), presumably in the interpreter's shutdown


def hooks(folder: Path, task: Task, progress: Path, number: int) -> Any:
    """Return the hooks of a rank: only rank 0 emits events and polls for a stop."""
    import torch

    from runner.training.trainer import Hooks
    from runner.training.training_checkpoints import write_progress

    torch.set_num_threads(threads(task))
    if number:
        return Hooks(lambda fields: None, lambda: False, lambda step: None)
    events = (folder / EVENTS).open("a", encoding="utf-8")

    def emit(fields: Mapping[str, Any]) -> None:
        events.write(json.dumps(dict(fields)) + "\n")
        events.flush()

    def saved(step: int) -> None:
        write_progress(progress, step, task.settings.steps)

    return Hooks(emit, (folder / STOP).exists, saved)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _killed(folder: Path, described: Mapping[str, Any]) -> None:
    """Record that a rank was killed, with the length of a window, for the error message."""
    import numpy as np

    from runner.training import training_checkpoints

    length = int(np.load(described["ids"], mmap_mode="r").shape[1])
    training_checkpoints.write_json(folder / "killed.json", {"length": length})


if __name__ == "__main__":
    main(sys.argv[1:])
