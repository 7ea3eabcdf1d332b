"""Build a TensorRT engine from an ONNX graph, in a separate process. Imports neither torch nor TensorRT.

The builder takes four times the weights in memory and does not return most of it (measured), and a graph can crash it:
neither affects the worker. The process is `runner.export.tensorrt_builder`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import runner
from runner.contracts.context import Context
from runner.errors import MachineError, RunnerError, StepFailed

RTX, ENTERPRISE = "rtx", "enterprise"
MODULES = {RTX: "tensorrt_rtx", ENTERPRISE: "tensorrt"}  # as Python imports them
NAMES = {RTX: "TensorRT-RTX", ENTERPRISE: "TensorRT"}

# The compute capabilities that tensorrt-rtx 1.7 supports, and those of a portable engine.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
PORTABLE = ("8.0", "8.6", "8.9", "12.0+")

# Peak memory of the builder's process (measured with tensorrt-rtx 1.7.1): 40 products of 346 MB in all 1.53 GB, a
# decoder of 12 layers and 107 MB 0.80 GB, one of 6 layers and 4.5 MB 0.33 GB.
BUILDER_BYTES = 200 << 20
BUILDER_LAYER = 20 << 20
BUILDER_FACTOR = 4

Range = tuple[list[int], list[int], list[int]]  # the smallest, the usual and the largest shape of an input
ORDER, ANSWER = "order.json", "built.json"
_POLL = 0.05
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_SHOWN = 3  # messages of TensorRT that an error quotes


@dataclass(frozen=True)
class Shape:
    """The sizes on which the inputs of a graph depend: layers, heads of keys and values, and the width of a head."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Order:
    """The order of an engine: `engine` is the name of a file in the builder's folder, `graph` one there or a path.

    `capabilities` None: the portable engine of `rtx`, or this machine's GPU for `enterprise`."""

    graph: str
    engine: str
    flavour: str
    capabilities: list[str] | None
    workspace: int
    profiles: dict[str, dict[str, Range]]
    timing_cache: str | None


@dataclass(frozen=True)
class Built:
    """A built engine. `weights_bytes` is the size of its weights, as the builder reports it.

    `inputs` and `outputs` have `name`, `type` and `shape`, −1 for dynamic sizes; `memory` is the peak of
    the builder's process in bytes.
    """

    version: str
    seconds: float
    memory: int
    engine_bytes: int
    weights_bytes: int | None
    capabilities: list[str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


def profiles(shape: Shape, max_batch: int, max_length: int) -> dict[str, dict[str, Range]]:
    """Return the shapes for which an engine is optimized: a prompt without a cache, and one token with a cache.

    `max_length` counts prompt and continuation, at least 2.
    """
    batch = (1, max_batch, max_batch)
    prompt = (1, max(1, max_length // 2), max_length)
    return {
        "prefill": _inputs(shape, batch, prompt, (0, 0, 0)),
        "decode": _inputs(shape, batch, (1, 1, 1), (1, max(1, max_length // 2), max_length - 1)),
    }


def _inputs(
    shape: Shape, batch: tuple[int, int, int], new: tuple[int, int, int], past: tuple[int, int, int]
) -> dict[str, Range]:
    tokens: Range = ([batch[0], new[0]], [batch[1], new[1]], [batch[2], new[2]])
    mask: Range = ([batch[0], new[0] + past[0]], [batch[1], new[1] + past[1]], [batch[2], new[2] + past[2]])
    cached: Range = (
        [batch[0], shape.kv_heads, past[0], shape.head_dim],
        [batch[1], shape.kv_heads, past[1], shape.head_dim],
        [batch[2], shape.kv_heads, past[2], shape.head_dim],
    )
    found = {"input_ids": tokens, "attention_mask": mask, "position_ids": tokens}
    for layer in range(shape.layers):
        found |= {f"past_key_values.{layer}.{part}": cached for part in ("key", "value")}
    return found


def timing_cache(flavour: str, gpu: str, folder: Path) -> str | None:
    """Return the file in `folder` that caches kernel timings, which make builds faster and more alike.

    None for `rtx`, which measures nothing while it builds: by its documentation a timing cache has no effect.
    """
    if flavour == RTX:
        return None
    name = "".join(c if c.isalnum() else "-" for c in gpu).lower()
    return str(folder / "tensorrt" / f"{name}.timing")


def build(ctx: Context, order: Order, folder: Path) -> Built:
    """Build an engine in `folder`, which holds the graph of the order; the engine is written there atomically.

    StepFailed where TensorRT refuses the graph or its process ends, MachineError where memory, the disk, a GPU or the
    package is missing, Interrupted when the job is to stop.
    """
    answer = folder / ANSWER
    answer.unlink(missing_ok=True)
    (folder / ORDER).write_text(json.dumps(asdict(order)), encoding="utf-8")
    with _process(folder, ctx.threads) as process:
        while process.poll() is None:
            ctx.safe_point()
            time.sleep(_POLL)
    if not answer.is_file():
        raise _exit_error(order, process.returncode)
    document = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in document:
        raise _error(document["error"])
    return Built(**document)


@contextmanager
def _process(folder: Path, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the builder's process, which ends when this one does and closes its stdin."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(runner.__file__).parent.parent)
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "runner.export.tensorrt_builder"], stdin=subprocess.PIPE, cwd=folder,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def complaints(trt: Any) -> Any:
    """Return a logger for the module `trt` that collects errors in `errors`; warnings and errors also go to stderr.

    `weights` is the size of the engine's weights in bytes, as a builder reports it; None where it does not.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.weights: int | None = None

        def log(self, severity: Any, message: str) -> None:
            found = _WEIGHTS.search(message)
            if found:
                self.weights = int(found.group(1))
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            if severity <= trt.ILogger.WARNING:
                sys.stderr.write(f"{message}\n")

    return Log()


def quoted(messages: Sequence[str]) -> str:
    """Return the first messages, which cause the later ones, each on one line."""
    lines = [" ".join(message.split()) for message in messages]
    return "; ".join(dict.fromkeys(lines[:_SHOWN])) or "it gave no reason"


def is_memory(text: str) -> bool:
    return any(word in text for word in ("cudaError 2:", "OutOfMemory", "bad_alloc", "out of memory"))


def _error(fields: Mapping[str, Any]) -> RunnerError:
    kind = MachineError if fields["type"] == "MachineError" else StepFailed
    return kind(fields["message"], fields["help"])


def _exit_error(order: Order, returncode: int) -> RunnerError:
    name = NAMES[order.flavour]
    if returncode == -signal.SIGKILL:
        return MachineError(
            f"the builder of {name} was killed (SIGKILL), probably because memory ran out",
            f"it takes {BUILDER_FACTOR} times the weights; close other programs, or use a machine with more memory",
        )
    how = signal.Signals(-returncode).name if returncode < 0 else f"status {returncode}"
    return StepFailed(
        f"the builder of {name} ended with {how} and gave no reason", "the log of the step has what it wrote"
    )
