"""Describe a failed step: an exception inside the worker, or the death of the worker itself."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass
from pathlib import Path

from runner.errors import MachineError, RecipeError, RunnerError, StepFailed
from runner.job import files
from runner.system.process_errors import first_line

# Messages of torch for a failed allocation; on the CPU it raises a plain RuntimeError.
_MEMORY_TEXT = ("can't allocate memory", "CUDA out of memory", "MPS backend out of memory", "std::bad_alloc")
_MEMORY_HELP = (
    "close other programs, lower `samples` or `sequence_length`, or use a machine with more memory; "
    "`runner plan` shows what each step needs. The same command continues where it stopped"
)
_TAIL_BYTES, _TAIL_LINES = 8192, 12


@dataclass(frozen=True)
class Failure:
    """The fields of a step_failed event."""

    error: str
    help: str | None
    exit_code: int


def describe_exception(error: BaseException, store: Path, log: Path) -> Failure:
    """Describe the exception of a step. `store` is where it wrote, `log` has its traceback, if it exists."""
    if files.is_full(error):
        full = files.full_disk(store)
        return Failure(full.message, full.help, full.exit_code)
    if isinstance(error, RecipeError):
        return Failure(error.render(), None, error.exit_code)
    if isinstance(error, RunnerError):
        return Failure(error.message, error.help, error.exit_code)
    if _is_memory(error):
        return Failure(f"memory ran out: {first_line(error)}", _MEMORY_HELP, MachineError.exit_code)
    return Failure(
        f"unexpected {type(error).__name__}: {first_line(error)}",
        f"the traceback is in {log}" if log.exists() else None,
        StepFailed.exit_code,
    )


def describe_exit(returncode: int, log: Path) -> Failure:
    """Describe a worker that ended without a result. `returncode` as in subprocess: negative for a signal."""
    tail = log_tail(log)
    last = f"\nthe log ends with:\n{tail}" if tail else ""
    if returncode >= 0:
        return Failure(
            f"the worker process ended with status {returncode} in the middle of the step{last}",
            f"the log is {log}",
            StepFailed.exit_code,
        )
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if name == "SIGKILL":
        return Failure(
            f"the worker process was killed (SIGKILL), probably because memory ran out{last}",
            _MEMORY_HELP,
            MachineError.exit_code,
        )
    if name == "SIGBUS":
        full = files.full_disk(log.parent)
        return Failure(
            f"the worker process was killed (SIGBUS): a memory-mapped file could not be read or written, "
            f"probably because a disk is full or failing{last}",
            f"{full.message}. Free some space there; the same command then continues where it stopped",
            MachineError.exit_code,
        )
    return Failure(f"the worker process crashed ({name}){last}", f"the log is {log}", StepFailed.exit_code)


def log_tail(log: Path) -> str:
    """Return the last lines of a log, indented; "" when there are none."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(f"    {line.rstrip()}" for line in text.splitlines()[-_TAIL_LINES:] if line.strip())


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(text in str(error) for text in _MEMORY_TEXT)
