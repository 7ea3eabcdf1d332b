"""The checks of parameters that all training kinds share. Imported by the planner: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.contracts.context import DataFacts, Params
from runner.errors import Diagnostic

if TYPE_CHECKING:
    from runner.contracts.step_kind import Inputs, MachineFacts

__all__ = ["check", "too_few"]


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return complaints about the shared parameters of a training, and about its processes."""
    found = [*_budget(params), *_batch(params, inputs.processes)]
    data = inputs.data.get("data")
    if data is not None:
        found += _data(params, data)
    return found + _processes(params, inputs.processes, inputs.machine)


def too_few(windows: int, batch: int) -> Diagnostic:
    """Return the complaint about a batch that is larger than the data."""
    noun = "1 window" if windows == 1 else f"{windows} windows"
    message = f"`batch_size` is {batch}, but the data has {noun}: a batch would hold the same text twice"
    remedy = f"use a `batch_size` of at most {windows}, more text, or more `samples` of it"
    return Diagnostic("R482", message, remedy, path=("batch_size",))


def _budget(params: Params) -> list[Diagnostic]:
    found = []
    if params.get("steps") is not None and params.get("tokens") is not None:
        message = f"both `steps` ({params['steps']}) and `tokens` ({params['tokens']}) say how long to train"
        found.append(Diagnostic("R480", message, "leave one of them out", path=("tokens",)))
    if params.get("patience") is not None and params.get("evaluation") is None:
        message = "`patience` counts measurements on `evaluation`, which is not given"
        remedy = "name an entry of `data` as `evaluation`, or leave `patience` out"
        found.append(Diagnostic("R480", message, remedy, path=("patience",)))
    return found


def _batch(params: Params, processes: int) -> list[Diagnostic]:
    batch, accumulation = int(params["batch_size"]), int(params["gradient_accumulation"])
    unit = processes * accumulation
    if batch % unit == 0:
        return []
    lower, upper = batch // unit * unit, -(-batch // unit) * unit
    near = f"{lower} or {upper}" if lower else str(upper)
    ways = "1 process" if processes == 1 else f"{processes} processes"
    message = f"`batch_size` {batch} cannot be shared equally by {ways} with `gradient_accumulation: {accumulation}`"
    return [Diagnostic("R481", message, f"use a multiple of {unit}, such as {near}", path=("batch_size",))]


def _data(params: Params, data: DataFacts) -> list[Diagnostic]:
    """Check the number of windows where it is known; those of a full text are counted when it is tokenized."""
    batch = int(params["batch_size"])
    return [too_few(data.samples, batch)] if data.samples is not None and data.samples < batch else []


def _processes(params: Params, processes: int, machine: MachineFacts) -> list[Diagnostic]:
    found = []
    if params.get("fsdp") and machine.device != "cuda":
        message = "`fsdp` shards a model over GPUs, and this step runs on the CPU"
        found.append(Diagnostic("R483", message, "leave `fsdp` out, or run on a machine with GPUs", path=("fsdp",)))
    elif params.get("fsdp") and processes == 1:
        message = "`fsdp` shards a model over several processes, and `resources` asks for one"
        remedy = "set `resources: {processes: N}` to the number of GPUs, or leave `fsdp` out"
        found.append(Diagnostic("R483", message, remedy, path=("fsdp",)))
    if machine.device == "cpu" and processes > machine.cpus:
        cores = "1 core" if machine.cpus == 1 else f"{machine.cpus} cores"
        message = f"`resources: {{processes: {processes}}}` is more than the {cores} of this machine"
        found.append(Diagnostic("R484", message, f"use at most {machine.cpus}"))
    return found
