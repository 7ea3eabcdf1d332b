"""Speed and memory of an artifact: a checkpoint in transformers, or an engine in its runtime.

Measured in a process of its own, so that load time and peak memory include nothing else. The figures are of this
machine at this moment; a step's result is still reused while its inputs are the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any, cast

from runner.contracts import metric_ranges
from runner.contracts.step_kind import (
    CHECKPOINT,
    ENGINE,
    METRICS_ONLY,
    QUANTIZED,
    Context,
    Cost,
    Inputs,
    Params,
    Result,
)
from runner.errors import Diagnostic, MachineError, StepFailed
from runner.export.preflight import unrunnable
from runner.model.layerwise import memory_budget
from runner.system.cpu import WAITING

VERSION = 1
CONSUMES = (CHECKPOINT, QUANTIZED, ENGINE)
PRODUCES = METRICS_ONLY
REQUIRES = ()
ALONE = True  # what runs at the same time would slow it down
METRICS = dict.fromkeys(
    (
        "bytes", "load_seconds", "prefill_tokens_per_second", "prefill_spread", "decode_tokens_per_second",
        "decode_spread", "memory", "gpu_memory",
    ),
    metric_ranges.AMOUNT,
)  # fmt: skip
_POLL = 0.2  # seconds between two checks for a stop request


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that prompt and continuation fit the model, and the batch the engine."""
    engine = inputs.checkpoint.engine or {}
    context = engine.get("context", inputs.checkpoint.config.context or None)
    found = unrunnable(inputs.checkpoint, inputs.machine.device)
    total = params["prompt_tokens"] + params["new_tokens"]
    what = "engine" if engine else "model"
    if isinstance(context, int) and total > context:
        message = f"`prompt_tokens` and `new_tokens` are {total} together; the {what} runs at most {context}"
        found.append(Diagnostic("R476", message, "lower one of them", path=("prompt_tokens",)))
    batch = engine.get("max_batch")
    if isinstance(batch, int) and params["batch_size"] > batch:
        message = f"`batch_size` is {params['batch_size']}; the engine runs at most {batch} sequences at once"
        found.append(Diagnostic("R476", message, f"lower it to {batch}, or build it for more", path=("batch_size",)))
    return found


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; the dense weights are in memory, and every decoded token reads them once."""
    facts, machine = inputs.checkpoint, inputs.machine
    value = memory_budget.compute_bytes(facts, machine.device)
    weights = sum(i.size for i in facts.sites)
    vocabulary = facts.config.vocabulary_size
    head = facts.config.hidden_size * vocabulary
    resident = weights * value + memory_budget.rest_bytes(facts, value)
    tokens = params["batch_size"] * (params["prompt_tokens"] + 4 * params["new_tokens"])
    times = params["warmup"] + params["repetitions"]
    seconds = 15 + times * 4 * tokens * (weights + head) / machine.flops
    return Cost(memory_budget.RUNTIME + resident + 4 * params["batch_size"] * vocabulary, 0, 0, seconds)


def run(ctx: Context) -> Result:
    from runner.runtime.timing import Timing, rate

    params = ctx.params
    folder = ctx.inputs["checkpoint"].path
    settings = {
        "folder": str(folder.absolute()), "device": ctx.device, "threads": ctx.threads, "seed": ctx.seed,
        **{name: params[name] for name in ("prompt_tokens", "new_tokens", "batch_size", "warmup", "repetitions")},
    }  # fmt: skip
    timing = Timing(**_measured(ctx, settings, params["warmup"] + params["repetitions"]))
    batch = params["batch_size"]
    prefill, prefill_spread = rate(batch * params["prompt_tokens"], timing.prefill)
    decode, decode_spread = rate(batch * params["new_tokens"], timing.decode)
    metrics: dict[str, float] = {
        "bytes": folder_bytes(folder), "load_seconds": timing.load,
        "prefill_tokens_per_second": prefill, "prefill_spread": prefill_spread,
        "decode_tokens_per_second": decode, "decode_spread": decode_spread, "memory": timing.memory,
    }  # fmt: skip
    if timing.gpu_memory is not None:
        metrics["gpu_memory"] = timing.gpu_memory
    details = {
        "runtime": timing.runtime, "device": ctx.device, "threads": ctx.threads,
        "prefill_seconds": timing.prefill, "decode_seconds": timing.decode,
    }  # fmt: skip
    return Result(metrics=metrics, details=details)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _measured(ctx: Context, settings: dict[str, Any], total: int) -> dict[str, Any]:
    """Run runner.runtime.timing in a new process, which ends when this one does; raise its errors here."""
    threads = str(ctx.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    for name in WAITING:
        environment.pop(name, None)  # as in serving, threads spin while they wait
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.runtime.timing"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        encoding="utf-8", env=environment,
    )  # fmt: skip
    stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    lines: Queue[str | None] = Queue()
    reader = threading.Thread(target=_read, args=(stdout, lines), daemon=True)
    reader.start()
    try:
        with suppress(BrokenPipeError):  # it died at once; the end of its output shows that
            stdin.write(json.dumps(settings) + "\n")
            stdin.flush()
        while True:
            ctx.safe_point()
            try:
                line = lines.get(timeout=_POLL)
            except Empty:
                continue
            if line is None:
                code = process.wait()
                raise StepFailed(
                    f"the measuring process died ({_death(code)})", "its last words are in the log of the step"
                )
            message = json.loads(line)
            if "done" in message:
                ctx.emit("progress", phase="repetitions", done=message["done"], total=total, unit="runs")
            elif "error" in message:
                error = message["error"]
                kind = MachineError if error["exit_code"] == MachineError.exit_code else StepFailed
                raise kind(error["message"], error["help"])
            else:
                result: dict[str, Any] = message["result"]
                return result
    finally:
        process.kill()
        process.wait()
        reader.join()
        stdout.close()
        with suppress(BrokenPipeError):
            stdin.close()


def _read(stdout: IO[str], lines: Queue[str | None]) -> None:
    """Put every line into the queue as it comes, then None."""
    for line in stdout:
        lines.put(line)
    lines.put(None)


def _death(code: int) -> str:
    return f"signal {-code}: out of memory?" if code == -9 else f"signal {-code}" if code < 0 else f"exit code {code}"
