"""The tools that are compared, each as the command that quantizes a model with the same tokens and settings."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tokens
from benchmarks.measure import Measure, environment, run

HERE = Path(__file__).parent
OURS = "runner"
PEERS = {
    "llm-compressor": "llmcompressor_gptq.py",
    "GPTQModel": "gptqmodel_gptq.py",
    "AutoRound": "autoround_signround.py",
    "AWQ": "llmcompressor_awq.py",
    "SmoothQuant": "llmcompressor_smoothquant.py",
}


@dataclass(frozen=True)
class Task:
    """A model and how to quantize it; calibration is the first `samples` windows of `demo:stdlib`.

    `step` is the kind that ours quantizes by, `params` its parameters besides bits and group size, which a `scheme`
    among them replaces. `rewrite` is a kind that comes before it, `dtype` what llm-compressor and the judge compute in.
    """

    name: str
    model: Path
    samples: int
    length: int
    bits: int = 4
    group_size: int = 128
    is_random: bool = False  # random weights have no perplexity worth judging
    step: str = "quantize.gptq"
    params: Mapping[str, Any] = field(default_factory=dict)
    rewrite: str = ""
    dtype: str = ""

    @property
    def numbers(self) -> dict[str, Any]:
        return {} if "scheme" in self.params else {"bits": self.bits, "group_size": self.group_size}


@dataclass(frozen=True)
class Outcome:
    """What one run of a tool took, and the checkpoint it left."""

    measure: Measure
    checkpoint: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON",
        help=f"compare with {' or '.join(PEERS)}, run by the python of the environment that has it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--cores", default="0,1", help="cores that a tool may use; default: 0,1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where tools compute; default: cpu")
    parser.add_argument("--work", type=Path, required=True, help="a folder for models and results; made if missing")


def peers(args: argparse.Namespace) -> dict[str, str]:
    """Name → python. SystemExit for a name that is not known or a python that is not there."""
    found: dict[str, str] = {}
    for written in args.peer:
        name, _, python = written.partition("=")
        if name not in PEERS or not Path(python).is_file():
            raise SystemExit(f"--peer takes NAME=PYTHON, NAME one of {', '.join(PEERS)}; got {written!r}")
        found[name] = str(Path(python).absolute())  # a virtual environment's python is a link: do not resolve it
    return found


def cores(args: argparse.Namespace) -> list[int]:
    return [int(core) for core in str(args.cores).split(",")]


def recipe(task: Task) -> str:
    """The recipe of a task with the defaults of the product but for the task's parameters. JSON is YAML."""
    calibrates = {"data": "calibration"} if task.step != "quantize.rtn" else {}
    steps: list[dict[str, Any]] = [{task.step: {**calibrates, **task.numbers, **task.params}}]
    if task.rewrite:
        tried = {"transform.awq": task.numbers}.get(task.rewrite, {})
        steps.insert(0, {task.rewrite: {"data": "calibration", **tried}})
    document = {
        "version": 1,
        "name": "benchmark",
        "model": {"source": str(task.model)},
        "data": {
            "calibration": {
                "source": "demo:stdlib",
                "split": "calibration",
                "samples": task.samples,
                "sequence_length": task.length,
            }
        },
        "steps": steps,
    }
    return json.dumps(document, indent=1)


def quantize(tool: str, python: str, task: Task, folder: Path, on: list[int], device: str = "cpu") -> Outcome:
    """Run `tool` once on `task`, from an empty store, in `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = environment(len(on))
    log = folder / "log.txt"
    if tool == OURS:
        (folder / "recipe.yaml").write_text(recipe(task))
        command = [python, "-m", "runner", "apply", "recipe.yaml", "--jobs", "jobs", "--progress", "plain"]
        command += ["--device", device]
        measure = run(command, cwd=folder, log=log, cores=on, env=env)
        job = next(path for path in (folder / "jobs").iterdir() if path.name.startswith("benchmark-"))
        return Outcome(measure, job / "output")
    np.save(folder / "tokens.npy", tokens.windows("calibration", task.samples, task.length, task.model))
    command = [python, str(HERE / "peers" / PEERS[tool]), str(task.model), "tokens.npy", "out", "--device", device]
    if task.numbers:
        command += ["--bits", str(task.bits), "--group-size", str(task.group_size)]
    if task.dtype and PEERS[tool].startswith("llmcompressor"):
        command += ["--dtype", task.dtype]
    return Outcome(run(command, cwd=folder, log=log, cores=on, env=env), folder / "out")


def predicted_memory(python: str, task: Task, folder: Path) -> int:
    """The peak bytes that `runner plan` forecasts for the task, nothing cached."""
    (folder / "recipe.yaml").write_text(recipe(task))
    command = [python, "-m", "runner", "plan", "recipe.yaml", "--jobs", "nothing-yet", "--json"]
    done = subprocess.run(command, cwd=folder, env=environment(1), check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["totals"]["memory"])


def perplexity(tool: str, python: str, checkpoint: Path, evaluation: Path, dtype: str = "") -> float:
    """The judge's score, in an environment that reads what the tool wrote: the peer's own, or this one."""
    computes = ["--dtype", dtype] if dtype else []
    done = subprocess.run(
        [python, str(HERE / "perplexity.py"), str(checkpoint), str(evaluation), *computes],
        env=environment(os.cpu_count() or 1), cwd=checkpoint.parent, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"the judge failed on what {tool} wrote:\n{done.stderr[-4000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["perplexity"])


def python_of(tool: str, others: dict[str, str]) -> str:
    return sys.executable if tool == OURS else others[tool]
