"""Compare the tokens of other programs with those of `runner generate`, each in an environment of its own.

    python -m benchmarks.readers FOLDER --work WORK
    CHROMIUM=/usr/bin/chromium python -m benchmarks.readers FOLDER --work WORK --only genai optimum

FOLDER is that of a graph or GGUF file. Environments that WORK lacks are made there, with pip and npm; Chromium is the
machine's own. Prints a row for each program: whether it loads the folder, how many prompts it splits into the same
tokens, how many it continues by the same ones, and how far apart the two logits are where it chooses another token.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    """A program: its script, its environment, and the packages of that. `format` is the one in engine.json."""

    script: str
    environment: str
    packages: tuple[str, ...]
    format: str = "onnx"


_JAVASCRIPT = ("@huggingface/transformers@4.3.2", "playwright-core@1.65.1")
READERS = {
    "onnxruntime-genai": Reader("onnxruntime_genai_reader.py", "genai", ("onnxruntime-genai==0.18.0",)),
    "optimum-onnx": Reader(
        "optimum_reader.py", "optimum", ("torch==2.13.0", "optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime")
    ),
    "OpenVINO": Reader("openvino_reader.py", "openvino", ("openvino==2026.4.1", "tokenizers")),
    "transformers.js, Node": Reader("transformers_js.mjs", "js", _JAVASCRIPT),
    "transformers.js, Chromium": Reader("transformers_js_browser.mjs", "js", _JAVASCRIPT),
    "llama.cpp": Reader("llama_cpp.mjs", "llama", ("node-llama-cpp@3.22.1",), "gguf"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--only", nargs="+", help="names of environments")
    args = parser.parse_args()
    folder, work = args.folder.absolute(), args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    engine = open.engine(folder) or {}
    text, runtime = Text(folder), open.open(folder, "cpu")
    prompts = [(prompt, text.ids(prompt)[0].tolist()) for prompt in PROMPTS]
    ours = [greedy(runtime, np.array([ids]), args.count, text.ends())[0] for _, ids in prompts]
    (work / "prompts.json").write_text(json.dumps(prompts))
    print("| program | loads | prompts split alike | continued alike | gaps where not |\n|---|---|---|---|---|")
    for name, reader in READERS.items():
        if reader.format != engine.get("format") or (args.only and reader.environment not in args.only):
            continue
        _make(reader, work / reader.environment)
        given = folder / str(engine["file"]) if reader.format == "gguf" else folder
        found = _read(work, reader, given, args.count)
        if isinstance(found, str):
            print(f"| {name} | no: {found} | | | |", flush=True)
            continue
        split = sum(ids == theirs[0] for (_, ids), theirs in zip(prompts, found, strict=True))
        gaps = [
            _gap(runtime, ids, own, theirs[1])
            for (_, ids), own, theirs in zip(prompts, ours, found, strict=True)
            if own != theirs[1]
        ]
        told = ", ".join(f"{gap:.3f}" for gap in sorted(gaps))
        print(
            f"| {name} | yes | {split} of {len(ours)} | {len(ours) - len(gaps)} of {len(ours)} | {told} |", flush=True
        )


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


def _read(work: Path, reader: Reader, given: Path, count: int) -> list[tuple[list[int], list[int]]] | str:
    """Run a script in its environment; return the ids of each prompt and its continuation, or why it failed."""
    place, out = work / reader.environment, work / "found.json"
    if reader.script.endswith(".mjs"):
        shutil.copyfile(HERE / reader.script, place / reader.script)  # beside its node_modules
        command = ["node", reader.script]
    else:
        command = [str(place / "bin" / "python"), str(HERE / reader.script)]
    ended = subprocess.run(
        [*command, str(given), str(work / "prompts.json"), str(count), str(out)],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if ended.returncode:
        lines = [line for line in ended.stdout.splitlines() if "rror" in line or "ailed" in line]
        return (lines or ended.stdout.splitlines() or ["no output"])[-1].strip()[:200]
    found: list[tuple[list[int], list[int]]] = [(one, two) for one, two in json.loads(out.read_text())]
    return found


if __name__ == "__main__":
    main()
