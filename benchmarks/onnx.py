"""INT4 ONNX against its rivals: prompt and continuation tokens a second, and peak memory, each in a process of its own.

    python -m benchmarks.onnx demo --work /tmp/bench
    python -m benchmarks.onnx 12x1024 --work /tmp/bench --runs 5

One recipe makes everything from the same model: the INT4 checkpoint (round to nearest, which runs like any other) as an
ONNX graph, the dense checkpoint as an ONNX graph in float32 and as a compiled package of PyTorch, beside the dense
checkpoint itself in transformers. Rivals take turns; the table has medians. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import random_llama, tokens
from benchmarks.measure import environment, run, timed

OURS = "INT4 ONNX"
STEPS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "dense-onnx": ("float32 ONNX", {"build.onnx": {}}),
    "dense-compiled": ("dense, compiled", {"build.compile": {}}),
    "int4": (None, {"quantize.rtn": {"bits": 4, "group_size": 128}}),
    "int4-onnx": (OURS, {"build.onnx": {}}),
}


@dataclass(frozen=True)
class Task:
    """A model, and what is run of it: `batch` prompts of `prompt` tokens, each continued by `new`."""

    name: str
    model: Path
    batch: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Speed:
    """Seconds of one prompt and one continuation, and the peak resident bytes of the process."""

    prefill: float
    decode: float
    memory: int


def recipe(model: Path, without: list[str]) -> str:
    """JSON is YAML. Engines of the dense model come first; `from` names what each step takes."""
    sources = {"dense-onnx": "model", "dense-compiled": "model", "int4": "model", "int4-onnx": "int4"}
    steps = [{"id": name, "from": sources[name], **step} for name, (_, step) in STEPS.items() if name not in without]
    return json.dumps({"version": 1, "name": "onnx", "model": {"source": str(model)}, "steps": steps}, indent=1)


def make(task: Task, folder: Path, cores: list[int], without: list[str]) -> dict[str, Path]:
    """Apply the recipe, or find what it left; rival → folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe(task.model, without))
    command = [sys.executable, "-m", "runner", "apply", "recipe.yaml", "--jobs", "jobs", "--progress", "plain"]
    run(command, cwd=folder, log=folder / "log.txt", cores=cores, env=environment(len(cores)))
    job = max((path for path in (folder / "jobs").glob("onnx-*")), key=lambda path: path.stat().st_mtime)
    found = {"dense, transformers": task.model}
    for name, (rival, _) in STEPS.items():
        if rival is not None and name not in without:
            found[rival] = next((job / "steps").glob(f"[0-9]*-{name}")) / "out"
    return found


def measure(task: Task, folder: Path, cores: list[int]) -> Speed:
    """One repetition after one that warms up, in a fresh process."""
    result = timed(sys.executable, folder, cores, (task.prompt, task.new), batch=task.batch)
    return Speed(result["prefill"][0], result["decode"][0], result["memory"])


def table(task: Task, speeds: dict[str, list[Speed]], sizes: dict[str, int]) -> str:
    """Markdown: medians of every rival, and how many times slower than ours its continuation is."""

    def middle(rival: str, name: str) -> float:
        return float(median(getattr(speed, name) for speed in speeds[rival]))

    runs = len(speeds[OURS])
    lines = [
        f"{task.name}, {task.batch} × {task.prompt} prompt tokens, {task.new} new tokens each, "
        + ("one run:" if runs == 1 else f"medians of {runs} runs:"),
        "",
        "| runs | prompt tokens/s | new tokens/s | range | times ours | peak MB | MB on disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for rival in speeds:
        rates = sorted(task.batch * task.new / speed.decode for speed in speeds[rival])
        lines.append(
            f"| {rival} | {task.batch * task.prompt / middle(rival, 'prefill'):.0f} "
            f"| {task.batch * task.new / middle(rival, 'decode'):.1f} | {rates[0]:.1f}–{rates[-1]:.1f} "
            f"| {middle(rival, 'decode') / middle(OURS, 'decode'):.1f} | {middle(rival, 'memory') / 1e6:.0f} "
            f"| {sizes[rival] / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="`demo`, or the LAYERSxHIDDEN of a random Llama")
    parser.add_argument("--work", type=Path, required=True, help="a folder for models and results; made if missing")
    parser.add_argument("--cores", default="0,1", help="cores that a rival may use; default: 0,1")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--without", action="append", default=[], choices=["dense-onnx", "dense-compiled"])
    parser.add_argument("--out", type=Path, help="append the table to this file")
    args = parser.parse_args(argv)
    work = args.work.absolute()
    cores = [int(core) for core in str(args.cores).split(",")]
    model = tokens.TINY_LLAMA
    if args.model != "demo":
        model = work / "models" / args.model
        if not model.exists():
            random_llama.write(model, *random_llama.parse_size(args.model))
    task = Task(args.model, model, args.batch, args.prompt, args.new)
    rivals = make(task, work / "onnx" / args.model, cores, args.without)
    speeds: dict[str, list[Speed]] = {rival: [] for rival in reversed(rivals)}
    for turn in range(1, args.runs + 1):
        for rival, found in speeds.items():
            found.append(measure(task, rivals[rival], cores))
            print(f"run {turn}/{args.runs} {rival}: {found[-1]}", file=sys.stderr, flush=True)
    weights = ("*.safetensors", "*.onnx*", "*.pt2", "*.so")
    sizes = {r: sum(f.stat().st_size for glob in weights for f in path.glob(glob)) for r, path in rivals.items()}
    text = table(task, speeds, sizes)
    print(text)
    if args.out:
        with args.out.open("a", encoding="utf-8") as out:
            out.write("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
