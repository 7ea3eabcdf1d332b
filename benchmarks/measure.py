"""Runs a command to its end and says what it took. Imports nothing heavy: a child's peak memory, as the kernel counts

it, is never less than what its parent held when it started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measure:
    """Wall and processor seconds, and the peak resident bytes of the largest process of the tree."""

    seconds: float
    cpu: float
    memory: int


def environment(threads: int) -> dict[str, str]:
    """The environment that all tools share: as many threads as cores, no network, no progress bars."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def run(command: Sequence[str], *, cwd: Path, log: Path, cores: Sequence[int], env: Mapping[str, str]) -> Measure:
    """Run `command` on `cores`, its output in `log`; SystemExit with the end of the log if it fails.

    Descendants count once they were waited for by their parent, as a worker's are.
    """
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for the child again
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-4000:]
        raise SystemExit(f"{' '.join(command)}\nexited {process.returncode}; the end of its output:\n{tail}")
    return Measure(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def timed(
    python: str, folder: Path, cores: Sequence[int], tokens: tuple[int, int], *, batch: int = 1, repetitions: int = 1
) -> dict[str, Any]:
    """Run `runner.runtime.timing` with a Python on a folder's model, after a repetition that warms up; its result.

    `tokens`: those of a prompt, and new ones. SystemExit with its last words if it fails.
    """
    settings = {
        "folder": str(folder), "device": "cpu", "threads": len(cores), "seed": 0, "prompt_tokens": tokens[0],
        "new_tokens": tokens[1], "batch_size": batch, "warmup": 1, "repetitions": repetitions,
    }  # fmt: skip
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), python, "-m", "runner.runtime.timing"]
    with subprocess.Popen(
        command, env=environment(len(cores)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()  # it ends by itself when this is closed
        lines = [json.loads(line) for line in process.stdout if line.startswith("{")]
    result: dict[str, Any] | None = next((line["result"] for line in lines if "result" in line), None)
    if result is None:
        raise SystemExit(f"{folder} could not be measured: {lines[-1] if lines else 'no output'}")
    return result


def applied(document: Mapping[str, Any], folder: Path, cores: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Apply a recipe, written to `folder` with its jobs; return the record of each step of its job by id."""
    name = document["name"]
    (folder / f"{name}.yaml").write_text(json.dumps(document, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "runner", "apply", f"{name}.yaml", "--jobs", "jobs", "--progress", "plain"]
    run(command, cwd=folder, log=folder / f"{name}.log", cores=cores, env=environment(len(cores)))
    job = max((folder / "jobs").glob(f"{name}-*"), key=lambda path: (path / "plan.json").stat().st_mtime)
    found = (json.loads(path.read_text("utf-8")) for path in job.glob("steps/*/record.json"))
    return {record["id"]: record for record in found}
