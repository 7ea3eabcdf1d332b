"""Several processes on this machine: as good as one, stopped together, and their errors told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.errors import Interrupted, MachineError, StepFailed
from runner.steps.kinds import find
from runner.system.process_errors import decode_error, encode_error
from runner.training import launch
from runner.training.arguments import arguments
from runner.training.run import fit
from runner.training.task import Fitted
from tests import tiny
from tests.host import Host
from tests.training import plain
from tests.training.recovering import quantized


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "llama")


def trained(ctx: plain.Caller, model: Path, **options: Any) -> Fitted:
    return fit(ctx, plain.task(ctx, model, **options))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[plain.Caller, Fitted]:
    ctx = plain.Caller(tmp_path_factory.mktemp("two"), processes=2)
    return ctx, trained(ctx, model, evaluated=True)


@pytest.mark.nightly
def test_two_processes_train_what_one_does(tmp_path: Path, model: Path, two: tuple[plain.Caller, Fitted]) -> None:
    ctx = plain.Caller(tmp_path)
    one, both = trained(ctx, model, evaluated=True), two[1]
    expected = load_file(one.weights)
    for name, tensor in load_file(both.weights).items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=1e-3)
    for mine, theirs in zip(one.details["evaluations"], both.details["evaluations"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
    assert [event["at"] for event in two[0].events] == list(range(1, 13))
    for event, single in zip(two[0].events, ctx.events, strict=True):
        assert event["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert event["memory"] > 2 * 10**8, "of both processes"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("recover.scales", {"norms": True}),
        ("recover.lora", {"rank": 4, "target_modules": ["q_proj", "up_proj"]}),
    ],
)
def test_two_processes_recover_packed_weights_as_one_does(tmp_path: Path, kind: str, params: dict[str, Any]) -> None:
    """Each in two forwards a step, against one process with the whole batch in one."""
    dense, packed = quantized(tmp_path, "quantize.rtn")
    settings = {"steps": 6, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32", **params}
    made = []
    for processes in (1, 2):
        host = Host(
            tmp_path / str(processes), kind, packed, tiny.tokens(16, 16), others={"teacher": dense},
            **settings, gradient_accumulation=processes,
        )  # fmt: skip
        host.processes = processes
        result = find(kind).run(host)
        made.append((result, load_file(host.scratch_dir / "training" / "weights.safetensors"), host.events))
    (one, expected, events), (both, weights, shared) = made
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=1e-3)
        assert not torch.equal(tensor, torch.zeros_like(tensor))
    assert both.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-4)
    single, several = ([e["loss"] for e in told if e["event"] == "train"] for told in (events, shared))
    assert several == pytest.approx(single, rel=1e-4)


def test_packed_integers_are_not_sent_between_processes(tmp_path: Path, model: Path) -> None:
    """They are buffers, which torch would broadcast before every forward."""
    task = plain.task(plain.Caller(tmp_path, processes=2), model)
    assert arguments(task, False).ddp_broadcast_buffers is False


class StopsAtEvent(plain.Caller):
    """Asks for a stop once step 2 was told."""

    def safe_point(self) -> None:
        if self.events and self.events[-1]["at"] >= 2:
            raise Interrupted("stopped")


@pytest.mark.nightly
def test_a_stop_ends_all_at_one_step_and_the_rest_gives_the_same_bytes(
    tmp_path: Path, model: Path, two: tuple[plain.Caller, Fitted]
) -> None:
    slow: dict[str, Any] = {"pause": 0.3}
    ctx = StopsAtEvent(tmp_path, processes=2)
    with pytest.raises(Interrupted):
        trained(ctx, model, evaluated=True, arguments=slow)
    (saved,) = (tmp_path / "scratch" / "training").glob("checkpoint-*")
    step = int(saved.name.rpartition("-")[2])
    assert 2 <= step < 12
    assert {path.name for path in saved.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    again = plain.Caller(tmp_path, processes=2)
    found = trained(again, model, evaluated=True, arguments=slow)
    assert again.events[0]["at"] == step + 1
    assert found.weights.read_bytes() == two[1].weights.read_bytes()
    assert found.details == two[1].details


@pytest.mark.skipif(
    "RUNNER_TEST_FSDP" not in os.environ,
    reason="accelerate shards on GPUs alone; forced to on the CPU, saving its optimizer fails now and then (KeyError)",
)
def test_a_sharded_model_trains_and_resumes_as_a_whole_one(
    tmp_path: Path, model: Path, two: tuple[plain.Caller, Fitted]
) -> None:
    def sharded(ctx: plain.Caller) -> Fitted:
        made = plain.task(ctx, model, evaluated=True, fsdp=True, arguments={"pause": 0.3})
        return fit(ctx, replace(made, build="tests.training.sharded:build"))

    with pytest.raises(Interrupted):
        sharded(StopsAtEvent(tmp_path, processes=2))
    again = plain.Caller(tmp_path, processes=2)
    found = sharded(again)
    assert again.events[0]["at"] > 2
    expected = load_file(two[1].weights)
    for name, tensor in load_file(found.weights).items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=1e-3)


@pytest.mark.nightly
def test_the_error_of_a_process_is_told(tmp_path: Path, model: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        trained(plain.Caller(tmp_path, processes=2), model, arguments={"poison": 7})
    assert caught.value.render() == (
        "error: the loss is NaN at step 7 of 12, with learning rate 0.00655; "
        f"the last good state is {tmp_path}/scratch/training/checkpoint-00000005\n"
        "help: lower `learning_rate` (now 0.01); lower `max_grad_norm` (now 1)"
    )


@pytest.mark.nightly  # tests/system/test_parent_death.py has two processes without a training
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no signal at a parent's death")
def test_processes_die_with_the_one_that_started_them(tmp_path: Path, model: Path) -> None:
    command = [sys.executable, "-m", "tests.training.plain", str(tmp_path), str(model), "3", "processes"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = str(tmp_path / "scratch" / "training" / "ranks").encode()
    for _ in range(200):
        left = [path for path in Path("/proc").glob("[0-9]*") if folder in command_line(path)]
        if not left:
            return
        time.sleep(0.05)
    for path in left:
        os.kill(int(path.name), signal.SIGKILL)
    pytest.fail(f"{len(left)} processes outlived their parent")


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_more_processes_than_gpus(tmp_path: Path, model: Path) -> None:
    ctx = plain.Caller(tmp_path, processes=64)
    ctx.device = "cuda"
    with pytest.raises(MachineError) as caught:
        trained(ctx, model)
    assert caught.value.render() == (
        "error: 64 processes are to train, each on a GPU of its own; "
        f"{torch.cuda.device_count()} can be used\n"
        "help: lower `resources: {processes: N}`, or check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    )


def test_an_unexpected_error_names_its_process_and_type() -> None:
    found = decode_error(encode_error(KeyError("x"), 1), "training process")
    assert found.render() == (
        "error: training process 1 failed with an unexpected KeyError: 'x'\nhelp: the log of the step has its traceback"
    )


def test_of_several_errors_the_first_expected_one_is_told(tmp_path: Path, model: Path) -> None:
    task = plain.task(plain.Caller(tmp_path, processes=2), model)
    for rank, error in enumerate((RuntimeError("connection closed by peer"), StepFailed("the loss is NaN"))):
        (tmp_path / f"error-{rank}.json").write_text(json.dumps(encode_error(error, rank)))
    found = launch.failure(tmp_path, task, 1)
    assert found is not None
    assert found.message == "the loss is NaN"


def test_processes_that_say_nothing(tmp_path: Path, model: Path) -> None:
    task = plain.task(plain.Caller(tmp_path, processes=2), model)
    assert launch.failure(tmp_path, task, 0) is None
    silent = launch.failure(tmp_path, task, 1)
    assert silent is not None
    assert silent.render() == (
        "error: the training processes ended with status 1 and gave no reason\n"
        "help: the log of the step has what they wrote"
    )
    (tmp_path / "killed.json").write_text('{"length": 16}')
    killed = launch.failure(tmp_path, task, 1)
    assert isinstance(killed, MachineError)
    assert killed.message == (
        "memory ran out while training: a training process was killed (SIGKILL), probably for its memory"
    )


def test_a_line_counts_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = launch.read_new_lines(path)
    assert next(events) == []
    path.write_text('{"at": 1}\n{"at"')
    assert next(events) == [{"at": 1}]
    with path.open("a") as file:
        file.write(": 2}\n")
    assert next(events) == [{"at": 2}]
    assert next(events) == []
