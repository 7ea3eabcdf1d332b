"""Prompt and continuation tokens a second of INT4 engines beside other programs' own, all of one checkpoint, by turns.

    python -m benchmarks.rates WORK/smollm2 --work WORK --genai GENAI/bin/python --executorch ET/bin/python --node JS

The model is rounded to 4 bits in groups of 32, and becomes: an ONNX graph with products in float32, one whose products
round inputs to 8 bits, a Q4_0 file of the same integers for llama.cpp (with --node, a folder with node-llama-cpp), and
a program for ExecuTorch (with --executorch, a Python that has it and this project's other packages). With --genai, a
Python with onnxruntime-genai, torch and onnx, its own builder makes an INT4 model of the same checkpoint, and it also
runs our second graph. Every program gets the same prompts and as many threads as --cores; each measurement is a
process of its own. Nothing else should run meanwhile; where it does, only the ratios within a turn mean something.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import environment, run

HERE = Path(__file__).parent / "readers"
EXACT, ROUNDED, GGUF, PROGRAM = "ours: ONNX, float32", "ours: ONNX, inputs in 8 bits", "Q4_0 in llama.cpp", "ours: .pte"
GENAI, GENAI_OURS = "genai's builder", "ours: ONNX, inputs in 8 bits, in genai"
STEPS: dict[str, dict[str, Any]] = {
    EXACT: {"id": "exact", "build.onnx": {"embedding": "int8"}},
    ROUNDED: {"id": "rounded", "build.onnx": {"embedding": "int4", "accuracy_level": 4}},
    GGUF: {"id": "gguf", "build.gguf": {}},
    PROGRAM: {"id": "program", "build.executorch": {"embedding": "int4", "context": 512}},
}


@dataclass(frozen=True)
class Rival:
    """A command that reads its settings from stdin, or a script with `FOLDER PROMPTS COUNT OUT`."""

    command: list[str]
    folder: Path
    cwd: Path | None = None


@dataclass(frozen=True)
class Task:
    """`prompt` tokens continued by `new`, `repetitions` times in a process, on `cores`."""

    prompt: int
    new: int
    repetitions: int
    cores: list[int]
    work: Path


def make(model: Path, work: Path, cores: list[int], python: str, names: list[str]) -> dict[str, Path]:
    """Apply the recipe of `names` with a Python, or find what it left; rival → folder."""
    steps = [{"id": "int4", "quantize.rtn": {"bits": 4, "group_size": 32, "grid": "mse"}}]
    steps += [{"from": "int4", **STEPS[name]} for name in names]
    name = "-".join(["rates", *(STEPS[each]["id"] for each in names)])
    document = {"version": 1, "name": name, "model": {"source": str(model)}, "steps": steps}
    (work / f"{name}.yaml").write_text(json.dumps(document, indent=1))
    command = [python, "-m", "runner", "apply", f"{name}.yaml", "--jobs", "jobs", "--progress", "plain"]
    run(command, cwd=work, log=work / f"{name}.log", cores=cores, env=environment(len(cores)))
    job = max((work / "jobs").glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    return {each: next((job / "steps").glob(f"[0-9]*-{STEPS[each]['id']}")) / "out" for each in names}


def rivals(args: argparse.Namespace, work: Path, cores: list[int]) -> dict[str, Rival]:
    """Make every engine that the given environments can run."""
    timing = ["-m", "runner.runtime.timing"]
    found = make(args.model.absolute(), work, cores, sys.executable, [EXACT, ROUNDED, *([GGUF] if args.node else [])])
    made = {name: Rival([sys.executable, *timing], found[name]) for name in (EXACT, ROUNDED)}
    if args.executorch:
        program = make(args.model.absolute(), work, cores, args.executorch, [PROGRAM])
        made[PROGRAM] = Rival([args.executorch, *timing], program[PROGRAM])
    if args.genai:
        script = str(HERE / "onnxruntime_genai_rate.py")
        built = work / "genai-int4"
        if not (built / "genai_config.json").is_file():
            command = [args.genai, "-m", "onnxruntime_genai.models.builder", "-m", str(args.model), "-i",
                       str(args.model), "-o", str(built), "-p", "int4", "-e", "cpu", "-c", str(work / "genai-cache"),
                       "--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]  # fmt: skip
            run(command, cwd=work, log=work / "genai.log", cores=cores, env=environment(len(cores)))
        made[GENAI] = Rival([args.genai, script], built)
        made[GENAI_OURS] = Rival([args.genai, script], found[ROUNDED])
    if args.node:
        shutil.copyfile(HERE / "llama_cpp_rate.mjs", args.node / "llama_cpp_rate.mjs")  # beside its node_modules
        made[GGUF] = Rival(["node", "llama_cpp_rate.mjs"], found[GGUF] / "model.gguf", args.node)
    return made


def measure(task: Task, rival: Rival) -> tuple[float, float]:
    """Return median seconds of a prompt and of its continuation, after a repetition that warms up."""
    env, pinned = environment(len(task.cores)), ["taskset", "--cpu-list", ",".join(map(str, task.cores))]
    if rival.command[1] == "-m":
        settings = {
            "folder": str(rival.folder), "device": "cpu", "threads": len(task.cores), "seed": 0, "batch_size": 1,
            "prompt_tokens": task.prompt, "new_tokens": task.new, "warmup": 1, "repetitions": task.repetitions,
        }  # fmt: skip
        with subprocess.Popen(
            [*pinned, *rival.command], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()  # it ends by itself when this is closed
            lines = [json.loads(line) for line in process.stdout if line.startswith("{")]
        result = next((line["result"] for line in lines if "result" in line), None)
        if result is None:
            raise SystemExit(f"{rival.folder} could not be measured: {lines[-1] if lines else 'no output'}")
    else:
        prompts, out = task.work / "prompts.json", task.work / "rate.json"
        command = [*pinned, *rival.command, *map(str, (rival.folder, prompts, task.new, len(task.cores), out))]
        run(command, cwd=rival.cwd or task.work, log=task.work / "rate.log", cores=task.cores, env=env)
        result = json.loads(out.read_text())
    return float(median(result["prefill"])), float(median(result["decode"]))


def write_prompts(task: Task, vocabulary: int) -> None:
    """Write the prompts that `runner.runtime.timing` draws with its seed 0, for the programs that read a file."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, vocabulary, (1, task.prompt), dtype=np.int64) for _ in range(1 + task.repetitions)]
    (task.work / "prompts.json").write_text(json.dumps([ids[0].tolist() for ids in drawn]))


def table(task: Task, found: dict[str, list[tuple[float, float]]], sizes: dict[str, int]) -> str:
    """Return Markdown: medians over turns, and within each turn the rate relative to the first rival."""
    base = next(iter(found))
    threads, turns = len(task.cores), len(found[base])
    lines = [
        f"One prompt of {task.prompt} tokens, {task.new} new tokens, {threads} threads, {turns} turns:",
        "", "| engine | prompt tokens/s | times the first | new tokens/s | times the first | MB |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, taken in found.items():
        rates = [tokens / median(turn[place] for turn in taken) for place, tokens in enumerate((task.prompt, task.new))]
        times = [median(b[p] / o[p] for o, b in zip(taken, found[base], strict=True)) for p in (0, 1)]
        lines.append(f"| {name} | {rates[0]:.0f} | {times[0]:.2f} | {rates[1]:.1f} | {times[1]:.2f} "
                     f"| {sizes[name] / 1e6:.1f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def size(folder: Path) -> int:
    """Return the bytes of an engine's weights and graph."""
    if folder.is_file():
        return folder.stat().st_size
    names = ("*.onnx", "*.onnx_data*", "*.onnx.data", "*.pte")
    return sum(path.stat().st_size for name in names for path in folder.rglob(name))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--genai")
    parser.add_argument("--executorch")
    parser.add_argument("--node", type=lambda text: Path(text).absolute())
    args = parser.parse_args(argv)
    work: Path = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    task = Task(args.prompt, args.new, args.repetitions, [int(core) for core in str(args.cores).split(",")], work)
    write_prompts(task, json.loads((args.model / "config.json").read_text())["vocab_size"])
    made = rivals(args, work, task.cores)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for turn in range(args.runs):
        for name, rival in made.items():
            found[name].append(measure(task, rival))
            print(f"turn {turn + 1}/{args.runs} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(table(task, found, {name: size(rival.folder) for name, rival in made.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
