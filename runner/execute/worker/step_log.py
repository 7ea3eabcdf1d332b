"""The log of a step: what the step, its libraries and the processes it starts write to stdout and stderr."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from runner.errors import Interrupted


class StepLog:
    """A context manager that redirects descriptors 1 and 2 to the end of a file, and adds the traceback of an error."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._stderr = os.dup(2)
        log = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def __exit__(self, *error: Any) -> None:
        if error[1] is not None and not isinstance(error[1], Interrupted):
            traceback.print_exception(error[1])
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(self._stderr, 1)
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
