"""Several processes of this machine that share the calibration batches of one layer-wise step.

    worker (process 0) ──┬── runner.model.layerwise.follower   process 1
                         └── ...

All run the same layers, each on batches of its own. Batches are divided into at most PARTS parts of neighbours. A sum
over all batches is the sum of those of the parts, in their order, and that of a part is made by one process: so the
number of processes changes no byte. Tensors travel by gloo on CPUs, by NCCL between GPUs; each process has one.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from runner.errors import MachineError, RunnerError, StepFailed
from runner.model.layerwise.stream_run import PARTS
from runner.system.process_errors import first_error

PARENT = "RUNNER_STEP_PARENT"  # the process id of the worker: a process that finds another parent exits
WORK, STORE = "work.pt", "store"
_POLL = 0.02
_PATIENCE = timedelta(days=7)  # a process waits while another one solves; those of a worker that died are killed
_SETTLING = 5.0  # seconds in which a process that closed its connection ends


def part_of(batch: int, batches: int) -> int:
    """Return the part that a batch belongs to: a number below PARTS that does not fall from batch to batch."""
    return batch * min(PARTS, batches) // batches


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a step as one of them sees them: it is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the worker, which writes the result."""
        return self.rank == 0

    def owner(self, part: int) -> int:
        """Return the process that makes the sums of a part."""
        return part % self.count

    def owned(self, batches: int) -> list[int]:
        """Return the numbers of the batches that this process runs."""
        return [batch for batch in range(batches) if self.owner(part_of(batch, batches)) == self.rank]

    def send(self, tensors: Sequence[torch.Tensor], to: int) -> None:
        """Send tensors to another process. The first is on the CPU, so that a process that died is noticed."""
        for tensor in tensors:
            distributed.send(tensor.contiguous(), to)

    def receive(self, tensors: Sequence[torch.Tensor], source: int) -> None:
        """Fill contiguous tensors with those that another process sends."""
        for tensor in tensors:
            distributed.recv(tensor, source)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Return in every process the value that process `source` has. Tensors move to the GPU of each process."""
        if self.count == 1:
            return value
        data = _encode(value) if self.rank == source else None
        length = torch.tensor([0 if data is None else data.numel()])
        distributed.broadcast(length, source)
        received = torch.empty(int(length), dtype=torch.uint8) if data is None else data
        distributed.broadcast(received, source)
        return value if data is not None else self._decode(received, source)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in their order, in the first one; an empty list in the others."""
        if not self.is_first:
            data = _encode(value)
            self.send([torch.tensor([data.numel()]), data], 0)
            return []
        found = [value]
        for source in range(1, self.count):
            length = torch.zeros(1, dtype=torch.int64)
            self.receive([length], source)
            data = torch.empty(int(length), dtype=torch.uint8)
            self.receive([data], source)
            found.append(self._decode(data, source))
        return found

    def _decode(self, data: torch.Tensor, source: int) -> Any:
        places = {f"cuda:{source}": f"cuda:{self.rank}"}
        return torch.load(io.BytesIO(data.numpy().tobytes()), map_location=places, weights_only=False)


ALONE = ProcessGroup()


def _encode(value: Any) -> torch.Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


@contextmanager
def started(count: int, device: str, folder: Path, work: Callable[[ProcessGroup], None]) -> Iterator[ProcessGroup]:
    """Context: `count` processes, this one the first; the others call `work`, which must be picklable.

    They share the threads of this one, and end with the context. Their errors are raised here: MachineError where one
    was killed or there are too few GPUs.
    """
    if count == 1:
        yield ALONE
        return
    if device == "cuda" and (gpus := torch.cuda.device_count()) < count:
        raise MachineError(
            f"{count} processes are to share the step, each with a GPU of its own; {gpus} can be used",
            "lower `resources: {processes: N}`, or check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
        )
    folder = folder / "processes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.save(work, folder / WORK)
    before = torch.get_num_threads()
    threads = max(1, before // count)
    torch.set_num_threads(threads)
    others = [_start(folder, rank, count, device, threads) for rank in range(1, count)]
    try:
        _await_ready(folder, others)
        join(folder, 0, count, device)
        yield ProcessGroup(0, count)
        leave()
        for other in others:
            other.wait()
    except RunnerError:
        raise
    except Exception as error:  # a lost connection has no type of its own
        failed = failure(folder, others)
        if failed is None:
            raise
        raise failed from error
    finally:
        for other in others:
            other.kill()
            other.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        torch.set_num_threads(before)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, rank: int, count: int, device: str, threads: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        PARENT: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "runner.model.layerwise.follower", str(folder), str(rank), str(count), device]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=2)


def _await_ready(folder: Path, others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until every process has its libraries; to meet one that died would take for ever."""
    ready = [folder / f"ready-{rank}" for rank in range(1, len(others) + 1)]
    while not all(path.exists() for path in ready):
        if any(other.poll() is not None for other in others):
            raise RuntimeError("a process of the step ended before it began")
        time.sleep(_POLL)


def join(folder: Path, rank: int, count: int, device: str) -> None:
    """Meet the other processes."""
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # independent of how the host name resolves
    if device == "cuda":
        torch.cuda.set_device(rank)
    store = distributed.FileStore(str(folder / STORE), count)  # type: ignore[attr-defined]  # documented, not in __all__
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)


def leave() -> None:
    """Part from the other processes once all are done."""
    distributed.barrier()
    distributed.destroy_process_group()


def failure(folder: Path, others: Sequence[subprocess.Popen[bytes]]) -> RunnerError | None:
    """Return the first error of the other processes, which caused those of the rest; None where none failed."""
    deadline = time.monotonic() + _SETTLING
    while time.monotonic() < deadline and all(other.poll() is None for other in others):
        time.sleep(_POLL)
    found = first_error(folder, "process")
    if found is not None:
        return found
    codes = [other.poll() for other in others]
    if -signal.SIGKILL in codes:
        rank = codes.index(-signal.SIGKILL) + 1
        return MachineError(
            f"process {rank} of the step was killed (SIGKILL), probably for its memory",
            "lower `resources: {processes: N}`, or use a machine with more memory",
        )
    ended = next((rank for rank, code in enumerate(codes, start=1) if code), None)
    if ended is None:
        return None
    text = f"process {ended} of the step ended with status {codes[ended - 1]} and gave no reason"
    return StepFailed(text, "the log of the step has what it wrote")
