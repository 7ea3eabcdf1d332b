"""The errors of a training, with the parameters to change."""

from __future__ import annotations

import math
from pathlib import Path

from runner.errors import MachineError, StepFailed
from runner.training.task import Settings, Task

# Messages of torch for a failed allocation; on the CPU it raises a plain RuntimeError.
_MEMORY_TEXT = ("can't allocate memory", "CUDA out of memory", "MPS backend out of memory", "std::bad_alloc")


def is_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXT)


def out_of_memory(task: Task, length: int, what: str, step: int | None = None) -> MachineError:
    """Return the error for too little memory. `length` is that of a window, `what` the exception's first line."""
    settings = task.settings
    micro = settings.batch_size // (settings.accumulation * task.processes)
    where = "" if step is None else f" at step {step + 1} of {settings.steps}"
    ways = []
    if micro > 1:
        ways.append(
            f"raise `gradient_accumulation` (now {settings.accumulation}: {micro} windows in a forward) "
            f"or lower `batch_size` (now {settings.batch_size})"
        )
    if not settings.gradient_checkpointing:
        ways.append("set `gradient_checkpointing: true` (now false)")
    ways.append(f"lower `sequence_length` of the data (now {length})")
    return MachineError(
        f"memory ran out while training{where}: {what}",
        "; ".join(ways) + "; or use a machine with more memory",
    )


def diverged(what: str, value: float, step: int, rate: float, settings: Settings, saved: Path | None) -> StepFailed:
    """Return the error of a NaN or infinite loss or gradient. `step` counts from 1, `rate` is its learning rate."""
    state = f"the last good state is {saved}" if saved else "no state was saved before it"
    ways = [
        f"lower `learning_rate` (now {settings.learning_rate:g})",
        f"lower `max_grad_norm` (now {settings.max_grad_norm:g})",
    ]
    if settings.warmup_steps < settings.steps // 10:
        ways.append(f"raise `warmup` (now {settings.warmup_steps} of {settings.steps} steps)")
    if settings.precision != "fp32":
        ways.append(f"set `precision: fp32` (now {settings.precision})")
    number = "NaN" if math.isnan(value) else "infinite"
    return StepFailed(
        f"the {what} is {number} at step {step} of {settings.steps}, with learning rate {rate:.3g}; {state}",
        "; ".join(ways),
    )
