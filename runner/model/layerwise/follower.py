"""A further process of a layer-wise step: `python -m runner.model.layerwise.follower FOLDER RANK COUNT DEVICE`.

It ends with the worker that started it, and ignores the signals that a terminal sends to all processes.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from runner.system import parent_death
from runner.system.process_errors import write_error


def main(arguments: list[str]) -> None:
    folder, rank, count, device = Path(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3]
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    try:
        follow(folder, rank, count, device)
    except BaseException as error:  # noqa: BLE001  any error goes to the worker
        traceback.print_exc()
        write_error(folder, rank, error)
        sys.stderr.flush()
        os._exit(1)  # a regular exit would wait for the others
    sys.stderr.flush()
    os._exit(0)


def follow(folder: Path, rank: int, count: int, device: str) -> None:
    """Do the work of process `rank` of `count`."""
    import torch

    from runner.model.layerwise import process_group

    parent_death.die_with_parent(os.environ.get(process_group.PARENT))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    work = torch.load(folder / process_group.WORK, weights_only=False)  # written by the worker
    (folder / f"ready-{rank}").touch()
    process_group.join(folder, rank, count, device)
    work(process_group.ProcessGroup(rank, count))
    process_group.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
