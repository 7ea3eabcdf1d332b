"""What training kinds refuse before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contracts.step_kind import DataFacts, Inputs, MachineFacts
from runner.model.architecture import inspect
from runner.model.checkpoint import headers
from runner.training.check import check
from tests.training.plain import PARAMS

CPU = MachineFacts(2, 10**10, 10**10, "cpu", 0, None, 1e11, 5e8)
GPU = replace(CPU, device="cuda", device_memory=80 * 10**9, gpu_name="NVIDIA H100")
DEMO = Path(headers.__file__).parents[2] / "demo" / "models" / "tiny-llama"


def said(machine: MachineFacts = CPU, processes: int = 1, samples: int | None = 64, **params: Any) -> list[str]:
    data = {"data": DataFacts("text", samples, 128, 10**6, "0" * 64)}
    inputs = Inputs(inspect.facts(DEMO, "demo"), {}, data, machine, processes)
    return [found.render() for found in check(PARAMS | params, inputs)]


def test_what_can_be_done_is_not_refused() -> None:
    assert said() == []
    assert said(processes=2, gradient_accumulation=2) == []
    assert said(GPU, processes=4, fsdp=True) == []
    assert said(samples=None, batch_size=4096) == [], "how many windows a whole text has is not known yet"
    assert said(steps=None, tokens=10**6, patience=2, evaluation="held_out") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokens": 5000},
            "error[R480]: both `steps` (12) and `tokens` (5000) say how long to train\nhelp: leave one of them out",
        ),
        (
            {"patience": 3},
            (
                "error[R480]: `patience` counts measurements on `evaluation`, which is not given\n"
                "help: name an entry of `data` as `evaluation`, or leave `patience` out"
            ),
        ),
        (
            {"batch_size": 10, "gradient_accumulation": 2, "processes": 2},
            (
                "error[R481]: `batch_size` 10 cannot be shared equally by 2 processes with `gradient_accumulation: 2`\n"
                "help: use a multiple of 4, such as 8 or 12"
            ),
        ),
        (
            {"batch_size": 1, "gradient_accumulation": 3},
            (
                "error[R481]: `batch_size` 1 cannot be shared equally by 1 process with `gradient_accumulation: 3`\n"
                "help: use a multiple of 3, such as 3"
            ),
        ),
        (
            {"batch_size": 8, "samples": 6},
            (
                "error[R482]: `batch_size` is 8, but the data has 6 windows: a batch would hold the same text twice\n"
                "help: use a `batch_size` of at most 6, more text, or more `samples` of it"
            ),
        ),
        (
            {"fsdp": True, "processes": 2},
            (
                "error[R483]: `fsdp` shards a model over GPUs, and this step runs on the CPU\n"
                "help: leave `fsdp` out, or run on a machine with GPUs"
            ),
        ),
        (
            {"fsdp": True, "machine": GPU},
            (
                "error[R483]: `fsdp` shards a model over several processes, and `resources` asks for one\n"
                "help: set `resources: {processes: N}` to the number of GPUs, or leave `fsdp` out"
            ),
        ),
        (
            {"processes": 4},
            "error[R484]: `resources: {processes: 4}` is more than the 2 cores of this machine\nhelp: use at most 2",
        ),
    ],
)
def test_what_cannot_be_done(options: dict[str, Any], message: str) -> None:
    assert said(**options) == [message]
