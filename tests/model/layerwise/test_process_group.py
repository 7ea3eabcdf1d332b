"""Several processes that share the batches of a step: the bytes of one, resumed with another number, their errors."""

from __future__ import annotations

import os
import signal
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Interrupted, MachineError, StepFailed
from runner.model.layerwise.partial_sums import PartialSums
from runner.model.layerwise.process_group import ALONE, ProcessGroup, part_of, started
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host

GPTQ: dict[str, Any] = {"bits": 3, "group_size": 16, "overrides": {"*.k_proj": {"bits": 8}}}  # two flows, two solutions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "llama")


def made(
    folder: Path, kind: str, model: Path, processes: int, stop_after: int | None = None, **params: Any
) -> tuple[dict[str, bytes], dict[str, float]]:
    """Run a kind on 9 batches, the last one smaller; return the tensors that it wrote, and its metrics."""
    host = Host(folder, kind, model, tiny.tokens(67, 256), stop_after=stop_after, **params)
    host.processes = processes
    result = find(kind).run(host)
    return {path.name: path.read_bytes() for path in host.out_dir.glob("*.safetensors")}, dict(result.metrics)


@pytest.mark.nightly
def test_two_processes_go_on_after_one_with_the_same_bytes(tmp_path: Path, model: Path) -> None:
    expected = made(tmp_path / "one", "quantize.gptq", model, 1, **GPTQ)
    with pytest.raises(Interrupted):
        made(tmp_path / "two", "quantize.gptq", model, 1, stop_after=1, **GPTQ)
    assert made(tmp_path / "two", "quantize.gptq", model, 2, **GPTQ) == expected
    assert expected[0]
    assert not (tmp_path / "two" / "scratch" / "processes").exists()
    assert torch.get_num_threads() >= 1


@pytest.mark.nightly
def test_two_processes_measure_the_same_perplexity(tmp_path: Path, model: Path) -> None:
    expected = made(tmp_path / "one", "evaluate.perplexity", model, 1)
    assert made(tmp_path / "two", "evaluate.perplexity", model, 2) == expected
    assert expected[1]["tokens"] == 67 * 255


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("quantize.gptq", GPTQ),
        ("quantize.gptq", {"group_size": 16, "true_sequential": False}),
        ("prune.wanda", {}),
        ("prune.wanda", {"allocation": "owl"}),
        ("prune.sparsegpt", {}),
        ("evaluate.perplexity", {}),
    ],
)
@pytest.mark.parametrize("processes", [3, 4])
def test_more_processes_give_the_same_bytes(
    tmp_path: Path, model: Path, kind: str, params: dict[str, Any], processes: int
) -> None:
    expected = made(tmp_path / "one", kind, model, 1, **params)
    assert made(tmp_path / "more", kind, model, processes, **params) == expected


@pytest.mark.nightly
def test_one_process_goes_on_after_four(tmp_path: Path, model: Path) -> None:
    expected = made(tmp_path / "one", "quantize.gptq", model, 1, **GPTQ)
    with pytest.raises(Interrupted):
        made(tmp_path / "four", "quantize.gptq", model, 4, stop_after=2, **GPTQ)
    assert made(tmp_path / "four", "quantize.gptq", model, 1, **GPTQ) == expected


class Queued(ProcessGroup):
    """Processes that are run one after another, the first one last; `mail` is by sender."""

    def __init__(self, rank: int, count: int, mail: dict[int, deque[Any]]) -> None:
        super().__init__(rank, count)
        object.__setattr__(self, "mail", mail)

    mail: dict[int, deque[Any]]

    def send(self, tensors: Sequence[torch.Tensor], to: int) -> None:
        assert to == 0
        self.mail[self.rank].append([tensor.clone() for tensor in tensors])

    def receive(self, tensors: Sequence[torch.Tensor], source: int) -> None:
        for mine, sent in zip(tensors, self.mail[source].popleft(), strict=True):
            mine.copy_(sent)


@pytest.mark.parametrize("batches", [1, 2, 3, 8, 13, 40])
@pytest.mark.parametrize(("want", "share"), [("hessian", 1), ("cross", 1), ("cross", 4), ("input_norms", 1)])
def test_sums_do_not_depend_on_how_many_make_them(batches: int, want: str, share: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 37, 24, generator=generator) for _ in range(2 * batches)]

    def sums(count: int) -> dict[str, Any]:
        mail: dict[int, deque[Any]] = defaultdict(deque)
        for rank in reversed(range(count)):
            group = Queued(rank, count, mail)
            collector = PartialSums(want, 24, torch.device("cpu"), batches, group, share)
            for batch in group.owned(batches):
                collector.add(inputs[batch], inputs[batch + batches])
        assert not any(mail.values())
        return vars(collector.finish())

    one = sums(1)
    assert one["tokens"] == 37 * batches
    every = torch.cat(inputs[:batches], 1)[0].double()
    if want == "input_norms":
        torch.testing.assert_close(one["input_norms"].double(), every.square().sum(0).sqrt())
    else:
        torch.testing.assert_close(one["hessian"].double(), every.T @ every * 2 / len(every), atol=1e-4, rtol=1e-5)
    if want == "cross":
        some, full = (torch.cat(part[::share], 1)[0].double() for part in (inputs[:batches], inputs[batches:]))
        expected = (full - some).T @ some * 2 / len(some)
        torch.testing.assert_close(one["cross"].double(), expected, atol=1e-4, rtol=1e-5)
    for count in (2, 3, 4, 8, 11):
        for name, value in sums(count).items():
            assert torch.equal(value, one[name]) if isinstance(value, torch.Tensor) else value == one[name]


def test_every_batch_has_one_owner_and_parts_are_neighbours() -> None:
    for batches in (1, 5, 8, 30):
        parts = [part_of(batch, batches) for batch in range(batches)]
        assert parts == sorted(parts)
        assert set(parts) == set(range(min(8, batches)))
        for count in (1, 2, 3, 8):
            owned = [batch for rank in range(count) for batch in ProcessGroup(rank, count).owned(batches)]
            assert sorted(owned) == list(range(batches))
    assert ALONE.owned(3) == [0, 1, 2]


def refuse(group: ProcessGroup) -> None:
    raise StepFailed("the statistics are not finite", "check the checkpoint")


def die(group: ProcessGroup) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_error_of_a_process_is_raised_in_the_first(tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as caught, started(2, "cpu", tmp_path, refuse) as group:
        group.gather(None)
    assert caught.value.render() == "error: the statistics are not finite\nhelp: check the checkpoint"


@pytest.mark.nightly
def test_a_process_that_is_killed(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught, started(2, "cpu", tmp_path, die) as group:
        group.gather(None)
    assert caught.value.render() == (
        "error: process 1 of the step was killed (SIGKILL), probably for its memory\n"
        "help: lower `resources: {processes: N}`, or use a machine with more memory"
    )


def test_more_processes_than_gpus(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught, started(64, "cuda", tmp_path, partial(refuse)):
        pass
    assert caught.value.render() == (
        "error: 64 processes are to share the step, each with a GPU of its own; "
        f"{torch.cuda.device_count()} can be used\n"
        "help: lower `resources: {processes: N}`, or check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    )
