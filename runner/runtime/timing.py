"""Measure how fast a folder's model runs, in a new process: `python -m runner.runtime.timing`.

The program reads its settings as one line of JSON from stdin and writes JSON lines: {"done": n} after each repetition,
finally {"result": ...} or {"error": ...}. It exits when stdin is closed.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runner.errors import RunnerError
from runner.runtime import open
from runner.runtime.greedy import likeliest
from runner.system import peak_memory


@dataclass(frozen=True)
class Settings:
    """The workload: `batch_size` prompts of `prompt_tokens` random tokens, each continued by `new_tokens`."""

    folder: str
    device: str
    threads: int
    seed: int
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    warmup: int
    repetitions: int


@dataclass(frozen=True)
class Timing:
    """Seconds of every repetition, after `load` seconds; peak resident bytes, and those on the GPU (None without)."""

    runtime: str
    load: float
    prefill: list[float]
    decode: list[float]
    memory: int
    gpu_memory: int | None


def measure(settings: Settings, progress: Callable[[int], None]) -> Timing:
    """Open the folder and time it; `progress` gets the number of finished repetitions, warm-up included.

    A repetition runs the prompts at once, with logits of the last position only, then `new_tokens` steps of decoding.
    """
    free = _gpu_free(settings.device)
    start = time.perf_counter()
    runtime = open.open(Path(settings.folder), settings.device, settings.threads)
    load = time.perf_counter() - start
    generator = np.random.default_rng(settings.seed)
    shape = (settings.batch_size, settings.prompt_tokens)
    prefill, decode = [], []
    for done in range(settings.warmup + settings.repetitions):
        ids = generator.integers(0, runtime.vocabulary, shape, dtype=np.int64)
        start = time.perf_counter()
        tokens = likeliest(runtime.prefill(ids, last=True)[:, -1])
        middle = time.perf_counter()
        for _ in range(settings.new_tokens):
            tokens = likeliest(runtime.decode(tokens[:, None])[:, -1])
        end = time.perf_counter()
        if done >= settings.warmup:
            prefill.append(middle - start)
            decode.append(end - middle)
        progress(done + 1)
    used = None if free is None else max(0, free - (_gpu_free(settings.device) or 0))
    name = runtime.name
    runtime.close()
    return Timing(name, load, prefill, decode, peak_memory.peak(), used)


def rate(tokens: int, seconds: list[float]) -> tuple[float, float]:
    """Return the median tokens per second, and the spread of the repetitions: (longest − shortest) / median time."""
    middle = statistics.median(seconds)
    return tokens / middle, (max(seconds) - min(seconds)) / middle


def _gpu_free(device: str) -> int | None:
    """Return the free bytes of the GPU; None where none is used."""
    if device == "cpu":
        return None
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _write_message(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    settings = Settings(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _write_message(result=asdict(measure(settings, lambda done: _write_message(done=done))))
    except RunnerError as error:
        _write_message(error={"message": error.message, "help": error.help, "exit_code": error.exit_code})
    sys.stdout.flush()
    os._exit(0)  # a regular exit would wait for the thread that reads stdin


if __name__ == "__main__":
    main()
