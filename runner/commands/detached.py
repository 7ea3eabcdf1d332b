"""A command that goes on without its terminal: `python -m runner.commands.detached`, its words as JSON on stdin.

They are not on its command line, where everybody on the machine could read the secrets among them.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runner.errors import MachineError

FOLDER = ".detached"  # in the jobs folder: what such commands print


def start(words: Sequence[str], jobs: Path) -> tuple[int, Path]:
    """Start `runner WORDS` in a session of its own; return its process id and the file that gets its output."""
    folder = jobs.absolute() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.commands.detached"],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        if process.stdin is not None:
            process.stdin.write(json.dumps(list(words)).encode())
            process.stdin.close()
    except BrokenPipeError:
        raise MachineError("the command ended as it began", f"{log} has what it wrote") from None
    process.returncode = 0  # its end is nobody's concern here
    return process.pid, log


def main() -> None:
    words = json.loads(sys.stdin.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["runner", *words]
    runpy.run_module("runner", run_name="__main__")


if __name__ == "__main__":
    main()
