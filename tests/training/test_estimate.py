"""The forecast of a training, against trainings of the demo model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contracts.mixtures import ExpertMatrix, Mixture
from runner.contracts.model_description import Linears, ModelDescription
from runner.contracts.step_kind import Cost, DataFacts, Inputs, MachineFacts
from runner.model.architecture import inspect
from runner.model.layerwise.memory_budget import SUSPENDED_HEAP
from runner.system import heap
from runner.system.cpu import fast_bf16
from runner.training.estimate import RUNTIME, estimate, memory_of_layer
from tests.training.measured import LENGTH
from tests.training.plain import PARAMS
from tests.training.test_check import CPU, DEMO, GPU

FACTS = inspect.facts(DEMO, "demo")
QUERIES = 6 * 256 * 256  # weights of all q_proj


def cost(
    trained: int = FACTS.parameters,
    machine: MachineFacts = CPU,
    processes: int = 1,
    length: int = LENGTH,
    **params: Any,
) -> Cost:
    data = {"data": DataFacts("text", 64, length, 10**6, "0" * 64)}
    frozen = 4 * (FACTS.parameters - trained)
    inputs = Inputs(FACTS, {}, data, machine, processes)
    return Cost(*estimate(inputs, PARAMS | params, trained=trained, disk=FACTS.nbytes, frozen_bytes=frozen))


@pytest.mark.parametrize(
    ("batch", "trained"), [(4, "all"), pytest.param(8, "q_proj.weight", marks=pytest.mark.nightly)]
)
@pytest.mark.nightly
def test_memory_is_within_a_quarter(tmp_path: Path, batch: int, trained: str) -> None:
    command = [sys.executable, "-m", "tests.training.measured", str(tmp_path), str(batch), trained]
    allocator = {"MALLOC_MMAP_THRESHOLD_": str(heap.MMAP_THRESHOLD), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, timeout=600, env={**os.environ, **allocator}
    )
    assert done.returncode == 0, done.stderr.decode()
    forecast = cost(FACTS.parameters if trained == "all" else QUERIES, batch_size=batch).memory
    assert int(done.stdout) <= forecast <= 1.25 * int(done.stdout)


_STEPS = {
    "recover.lora": "recover.lora: {teacher: model, loss: next_token, rank: 16, ",
    "recover.lora of integers": "recover.lora: {teacher: model, rank: 16, ",
    "distill.logits": "distill.logits: {teacher: model, student: {drop: 2}, ",
}


@pytest.mark.parametrize(("kind", "batch"), [("recover.lora", 8), ("recover.lora of integers", 8),
                                              ("distill.logits", 8)])  # fmt: skip
@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is about glibc's heap")
def test_a_training_fits_into_what_its_plan_says(tmp_path: Path, kind: str, batch: int) -> None:
    """A whole step of the demo model in a worker: never more than the forecast, nor a fifth less."""
    first = "  - quantize.rtn: {bits: 4, group_size: 64}\n" if kind.endswith("integers") else ""
    (tmp_path / "r.yaml").write_text(
        'version: 1\nname: r\nmodel: {source: "demo:tiny-llama"}\n'
        f'data: {{text: {{source: "demo:stdlib", split: train, samples: 32, sequence_length: {LENGTH}}}}}\n'
        f"steps:\n{first}  - {_STEPS[kind]}data: text, steps: 3, batch_size: {batch}, precision: fp32}}\n"
    )
    planned = _runner("plan", "r.yaml", "--json", folder=tmp_path)
    forecast = json.loads(planned)["steps"][-1]["memory"]
    _runner("apply", "r.yaml", "--jobs", "jobs", folder=tmp_path)
    [record] = (tmp_path / "jobs").glob("r-*/steps/0[12]-lo*/record.json")
    measured = json.loads(record.read_text())["memory"]
    assert measured <= forecast <= 1.2 * measured


def _runner(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "runner", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_small_activations_take_more_of_the_heap_of_a_cpu() -> None:
    """Blocks that glibc maps separately are returned whole; of smaller ones the freed leave room that few can take."""
    small, large = (LENGTH // 2, 64 * LENGTH)  # tokens whose widest rows are below and whose narrowest are above it
    assert 4 * small * 768 < heap.MMAP_THRESHOLD <= 4 * large * 256
    for tokens, share in ((0, 1), (small, SUSPENDED_HEAP), (large, 1)):
        assert memory_of_layer(FACTS, 4, tokens) == share * memory_of_layer(FACTS, 4)
    between = 8 * LENGTH  # only rows of 768 are as large
    mapped = 4 * 4 * 768
    assert memory_of_layer(FACTS, 4, between) == SUSPENDED_HEAP * (memory_of_layer(FACTS, 4) - mapped) + mapped
    assert cost(machine=GPU, batch_size=4).memory < cost(batch_size=4).memory


def test_a_trained_weight_takes_sixteen_bytes_and_a_checkpoint_twelve() -> None:
    all_, none = cost(), cost(trained=0)
    assert all_.memory - none.memory == FACTS.parameters * (16 - 4)
    # Two checkpoints while the older is removed, two best states, the result.
    assert all_.scratch - none.scratch == FACTS.parameters * (2 * 12 + 2 * 4 + 4)
    assert all_.disk == FACTS.nbytes


def test_what_takes_less_memory() -> None:
    whole = cost(batch_size=16)
    assert cost(batch_size=16, gradient_accumulation=4).memory == cost(batch_size=4).memory < whole.memory
    assert cost(batch_size=16, gradient_checkpointing=True).memory < whole.memory
    assert cost(batch_size=16, length=LENGTH // 2).memory == cost(batch_size=8).memory
    assert cost(batch_size=16, precision="bf16").memory < whole.memory


def test_processes_take_memory_each_and_shards_share_it() -> None:
    alone = cost(batch_size=4)
    both = cost(batch_size=8, processes=2)
    assert both.memory == 2 * alone.memory
    sharded = cost(batch_size=8, processes=2, machine=GPU, fsdp=True)
    whole = cost(batch_size=8, processes=2, machine=GPU)
    assert whole.memory - sharded.memory == pytest.approx(16 * FACTS.parameters, abs=4)


def test_time_grows_with_the_steps_and_falls_with_what_is_frozen() -> None:
    one, two = cost(steps=100), cost(steps=200)
    assert two.seconds - one.seconds == pytest.approx(one.seconds - cost(steps=0).seconds)
    assert cost(trained=0, steps=100).seconds < one.seconds < cost(steps=100, gradient_checkpointing=True).seconds


def test_auto_is_bf16_where_training_finds_it() -> None:
    assert cost(precision="auto").memory == cost(precision="bf16" if fast_bf16() else "fp32").memory
    assert cost(batch_size=1, length=1).memory > RUNTIME


def test_every_expert_of_a_token_stores_activations() -> None:
    matrix = ExpertMatrix("model.layers.0.mlp.experts.{}.down_proj", "expert_down", 256, 128)
    mixtures = tuple(Mixture("model.layers.0.mlp.experts", 0, 16, (matrix,), active) for active in (0, 4))
    one, other = (
        memory_of_layer(replace(FACTS, description=ModelDescription(linears=Linears(mixtures=(each,)))), 2)
        for each in mixtures
    )
    assert one == memory_of_layer(FACTS, 2)
    assert other - one == 4 * (256 + 4 * 128) * 2


def test_experts_that_a_token_is_not_routed_to_take_no_time() -> None:
    matrix = ExpertMatrix("experts.{}.down_proj", "expert_down", 256, 128)
    all_of_4, some_of_16 = (
        replace(FACTS, description=ModelDescription(linears=Linears(mixtures=(mixture,))))
        for mixture in (Mixture("model.layers.0.mlp.experts", 0, count, (matrix,), 4) for count in (4, 16))
    )
    data = {"data": DataFacts("text", 64, LENGTH, 10**6, "0" * 64)}
    params = {**PARAMS, "steps": 10, "batch_size": 4, "gradient_checkpointing": False}
    one, other = (
        estimate(Inputs(facts, {}, data, CPU, 1), params, trained=1000, disk=0) for facts in (all_of_4, some_of_16)
    )
    products = 4 * 12 * 256 * 128  # forward and backward, of 12 experts of 16
    assert one.seconds - other.seconds == pytest.approx(10 * 4 * LENGTH * products / CPU.flops, rel=1e-6)
    assert one.memory == other.memory
