"""What may run at once on this machine."""

from __future__ import annotations

import pytest

from runner.execute.capacity import Capacity, visible
from runner.plan.resources import Demand


def test_memory_and_processors_are_shared_and_a_single_step_may_always_run() -> None:
    room = Capacity(memory=10, cpus=4)
    assert room.has_room(Demand(memory=50)), "the plan has judged whether it fits the machine"
    first = room.take(Demand(memory=6, cpus=3))
    assert room.has_room(Demand(memory=4))
    assert not room.has_room(Demand(memory=5))
    assert not room.has_room(Demand(cpus=2))
    room.give_back(first)
    assert room.has_room(Demand(memory=5))


def test_each_step_sees_its_own_gpus() -> None:
    room = Capacity(memory=10, cpus=4, gpus=("0", "1", "GPU-7"))
    assert visible(room.take(Demand())) == {}
    half = room.take(Demand(gpus=0.5))
    assert visible(half) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert visible(room.take(Demand(gpus=0.5))) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert visible(room.take(Demand(gpus=2))) == {"CUDA_VISIBLE_DEVICES": "1,GPU-7"}
    assert not room.has_room(Demand(gpus=0.25))
    room.give_back(half)
    assert room.has_room(Demand(gpus=0.25))
    assert not room.has_room(Demand(gpus=1))


@pytest.mark.parametrize(("running", "next"), [(Demand(alone=True), Demand()), (Demand(), Demand(alone=True))])
def test_a_step_that_measures_the_machine_runs_alone(running: Demand, next: Demand) -> None:
    room = Capacity(memory=10, cpus=4)
    share = room.take(running)
    assert room.is_taken_alone == running.alone
    assert not room.has_room(next)
    room.give_back(share)
    assert room.has_room(next)
