"""What steps that run at once may take of this machine: memory, processors, and GPUs by their names."""

from __future__ import annotations

from dataclasses import dataclass

from runner.plan import machine
from runner.plan.resources import Demand

_LEAST_PART = 1e-6  # of a GPU: sums of parts are rounded


@dataclass(frozen=True, eq=False)
class Share:
    """What one step holds. `gpus`: names as CUDA_VISIBLE_DEVICES has them, with the part of each."""

    demand: Demand
    gpus: tuple[tuple[str, float], ...]


class Capacity:
    """The room for steps that run at once. What runs alone may take more than there is: the plan has judged it."""

    def __init__(self, memory: int, cpus: int, gpus: tuple[str, ...] = ()) -> None:
        self._memory, self._cpus = memory, cpus
        self._free = dict.fromkeys(gpus, 1.0)
        self._held: list[Share] = []

    @property
    def is_taken_alone(self) -> bool:
        """Whether a step that measures the machine runs."""
        return any(share.demand.alone for share in self._held)

    def has_room(self, demand: Demand) -> bool:
        if not self._held:
            return True
        if demand.alone or self.is_taken_alone:
            return False
        memory = sum(share.demand.memory for share in self._held) + demand.memory
        cpus = sum(share.demand.cpus or 0 for share in self._held) + (demand.cpus or 0)
        return memory <= self._memory and cpus <= self._cpus and self._choose(demand.gpus) is not None

    def take(self, demand: Demand) -> Share:
        """Reserve what a step asks for; call it where `has_room` is true."""
        share = Share(demand, self._choose(demand.gpus) or ())
        for name, part in share.gpus:
            self._free[name] -= part
        self._held.append(share)
        return share

    def give_back(self, share: Share) -> None:
        self._held.remove(share)
        for name, part in share.gpus:
            self._free[name] += part

    def _choose(self, count: float) -> tuple[tuple[str, float], ...] | None:
        """Return GPUs with room: whole ones, or a part of the fullest that has it; None where there are too few."""
        if count <= 0:
            return ()
        if count < 1:
            fitting = [name for name, free in self._free.items() if free >= count - _LEAST_PART]
            return ((min(fitting, key=lambda name: self._free[name]), count),) if fitting else None
        whole = [name for name, free in self._free.items() if free >= 1 - _LEAST_PART]
        wanted = -(-count // 1)
        return tuple((name, 1.0) for name in whole[: int(wanted)]) if len(whole) >= wanted else None


def of_this_machine() -> Capacity:
    """Return the room on this machine: the memory that is free now, its processors and GPUs."""
    return Capacity(machine.memory()[1], machine.cpu_count(), machine.gpu_names())


def visible(share: Share) -> dict[str, str]:
    """Return the environment variables that show a worker only the GPUs of its share; none where it has no GPU."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(name for name, _ in share.gpus)} if share.gpus else {}
