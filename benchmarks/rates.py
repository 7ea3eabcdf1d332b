"""Prompt and continuation tokens a second of INT4 engines beside other programs' own, all of one checkpoint, by turns.

    python -m benchmarks.rates WORK/smollm2 --work WORK --genai GENAI/bin/python --executorch ET/bin/python --node JS

The model is rounded to 4 bits in groups of 32, and becomes: an ONNX graph with products in float32, one whose products
round inputs to 8 bits, that graph with its tables in 4 bits (by GPTQ from 64 windows of text), a Q4_0 file of the same
integers for llama.cpp (with --node, a folder with node-llama-cpp), and a program for ExecuTorch (with --executorch, a
Python that has it and this project's other packages). With --node, the model itself becomes a Q4_K_M file, too. With
--genai, a Python with onnxruntime-genai, torch and onnx, its own builder makes an INT4 model of the same checkpoint,
and it also runs our second and third graph. Every program gets the same prompts and as many threads as --cores; each
measurement is a process of its own. Rates are those of the shortest times, which other work on the machine disturbs
least; where there is much of it, the processor seconds of each process say more.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import environment, run, timed

HERE = Path(__file__).parent / "readers"
EXACT, ROUNDED, PROGRAM = "ours: ONNX, float32", "ours: ONNX, inputs in 8 bits", "ours: .pte"
SMALL = "ours: ONNX, inputs in 8 bits, tables in 4"
GGUF, MIXED = "ours: Q4_0 in llama.cpp", "ours: Q4_K_M in llama.cpp"
GENAI, GENAI_OURS = "genai's builder", "ours: ONNX, inputs in 8 bits, in genai"
GENAI_SMALL = "ours: ONNX, inputs in 8 bits, tables in 4, in genai"
DATA = {"calibration": {"source": "demo:stdlib", "split": "calibration", "samples": 64, "sequence_length": 256}}
STEPS: dict[str, dict[str, Any]] = {
    EXACT: {"id": "exact", "from": "int4", "build.onnx": {}},
    ROUNDED: {"id": "rounded", "from": "int4", "build.onnx": {"accuracy_level": 4}},
    SMALL: {
        "id": "small",
        "from": "int4",
        "build.onnx": {"accuracy_level": 4, "embedding": "int4", "data": "calibration"},
    },
    GGUF: {"id": "gguf", "from": "int4", "build.gguf": {}},
    MIXED: {"id": "mixed", "from": "model", "build.gguf": {"dense": "q4_k_m"}},
    PROGRAM: {"id": "program", "from": "int4", "build.executorch": {"context": 512}},
}


@dataclass(frozen=True)
class Rival:
    """A Python that runs `runner.runtime.timing`, or a script with `FOLDER PROMPTS COUNT THREADS OUT`."""

    folder: Path
    python: str = sys.executable
    script: tuple[str, ...] | None = None
    cwd: Path | None = None


@dataclass(frozen=True)
class Task:
    """`prompt` tokens continued by `new`, `repetitions` times in a process, on `cores`."""

    prompt: int
    new: int
    repetitions: int
    cores: list[int]
    work: Path


@dataclass(frozen=True)
class Speed:
    """The shortest seconds of a prompt and of its continuation; processor seconds of the process, start included."""

    prefill: float
    decode: float
    cpu: float


def make(model: Path, work: Path, cores: list[int], python: str, names: list[str]) -> dict[str, Path]:
    """Apply the recipe of `names` with a Python, or find what it left; rival → folder."""
    steps = [{"id": "int4", "quantize.rtn": {"bits": 4, "group_size": 32}}]
    steps += [STEPS[name] for name in names]
    name = "-".join(["rates", *(STEPS[each]["id"] for each in names)])
    document = {"version": 1, "name": name, "model": {"source": str(model)}, "data": DATA, "steps": steps}
    (work / f"{name}.yaml").write_text(json.dumps(document, indent=1))
    command = [python, "-m", "runner", "apply", f"{name}.yaml", "--jobs", "jobs", "--progress", "plain"]
    run(command, cwd=work, log=work / f"{name}.log", cores=cores, env=environment(len(cores)))
    job = max((work / "jobs").glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    return {each: next((job / "steps").glob(f"[0-9]*-{STEPS[each]['id']}")) / "out" for each in names}


def rivals(args: argparse.Namespace, work: Path, cores: list[int]) -> dict[str, Rival]:
    """Make every engine that the given environments can run."""
    files = [GGUF, MIXED] if args.node else []
    found = make(args.model.absolute(), work, cores, sys.executable, [EXACT, ROUNDED, SMALL, *files])
    made = {name: Rival(found[name]) for name in (EXACT, ROUNDED, SMALL)}
    if args.executorch:
        program = make(args.model.absolute(), work, cores, args.executorch, [PROGRAM])
        made[PROGRAM] = Rival(program[PROGRAM], args.executorch)
    if args.genai:
        script = args.genai, str(HERE / "onnxruntime_genai_rate.py")
        built = work / "genai-int4"
        if not (built / "genai_config.json").is_file():
            command = [args.genai, "-m", "onnxruntime_genai.models.builder", "-m", str(args.model), "-i",
                       str(args.model), "-o", str(built), "-p", "int4", "-e", "cpu", "-c", str(work / "genai-cache"),
                       "--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]  # fmt: skip
            run(command, cwd=work, log=work / "genai.log", cores=cores, env=environment(len(cores)))
        made[GENAI] = Rival(built, script=script)
        made[GENAI_OURS] = Rival(found[ROUNDED], script=script)
        made[GENAI_SMALL] = Rival(found[SMALL], script=script)
    if args.node:
        shutil.copyfile(HERE / "llama_cpp_rate.mjs", args.node / "llama_cpp_rate.mjs")  # beside its node_modules
        for name in files:
            made[name] = Rival(found[name] / "model.gguf", script=("node", "llama_cpp_rate.mjs"), cwd=args.node)
    return made


def measure(task: Task, rival: Rival) -> Speed:
    """Time a rival in a process of its own, after a repetition that warms up."""
    before = _children()
    if rival.script is None:
        result = timed(
            rival.python, rival.folder, task.cores, (task.prompt, task.new), repetitions=task.repetitions
        )  # fmt: skip
    else:
        out = task.work / "rate.json"
        command = [*rival.script, *map(str, (rival.folder, task.work / "prompts.json", task.new, len(task.cores), out))]
        env = environment(len(task.cores))
        run(command, cwd=rival.cwd or task.work, log=task.work / "rate.log", cores=task.cores, env=env)
        result = json.loads(out.read_text())
    return Speed(min(result["prefill"]), min(result["decode"]), _children() - before)


def _children() -> float:
    """Return the processor seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_prompts(task: Task, vocabulary: int) -> None:
    """Write the prompts that `runner.runtime.timing` draws with its seed 0, for the programs that read a file."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, vocabulary, (1, task.prompt), dtype=np.int64) for _ in range(1 + task.repetitions)]
    (task.work / "prompts.json").write_text(json.dumps([ids[0].tolist() for ids in drawn]))


def table(task: Task, found: dict[str, list[Speed]], sizes: dict[str, int]) -> str:
    """Return Markdown: the best of all turns, and the fewest processor seconds of a process."""
    turns = len(next(iter(found.values())))
    what = f"One prompt of {task.prompt} tokens, {task.new} new tokens, {len(task.cores)} threads"
    header = "| engine | prompt tokens/s | new tokens/s | processor s of a process | MB |"
    best = f"the best of {turns} processes of {task.repetitions} repetitions:"
    lines = [f"{what}, {best}", "", header, "|---|---|---|---|---|"]
    for name, taken in found.items():
        prompt, new = task.prompt / min(each.prefill for each in taken), task.new / min(each.decode for each in taken)
        cpu = min(each.cpu for each in taken)
        lines.append(f"| {name} | {prompt:.0f} | {new:.1f} | {cpu:.1f} | {sizes[name] / 1e6:.1f} |")
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
    found: dict[str, list[Speed]] = {name: [] for name in made}
    for turn in range(args.runs):
        for name, rival in made.items():
            found[name].append(measure(task, rival))
            print(f"turn {turn + 1}/{args.runs} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(table(task, found, {name: size(rival.folder) for name, rival in made.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
