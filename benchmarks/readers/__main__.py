"""Compare the tokens of other programs with those of `runner generate`, each in an environment of its own.

    python -m venv WORK/genai && WORK/genai/bin/pip install onnxruntime-genai==0.18.0
    python -m venv WORK/optimum && WORK/optimum/bin/pip install optimum-onnx transformers==4.57.6 onnxruntime torch
    (cd WORK/js && npm install --ignore-scripts @huggingface/transformers@4.3.2 node-llama-cpp@3.22.1)
    python -m benchmarks.readers FOLDER --work WORK

FOLDER is that of a graph or GGUF file. Programs whose environment is missing are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np

from runner.runtime import open
from runner.runtime.greedy import greedy
from runner.runtime.text import Text

HERE = Path(__file__).parent
PROMPTS = (
    "def main(", "import os\n", "The module provides", "class Foo(object):\n    def __init__(self", "Return the",
    "  x = 1\n", "    raise ValueError(", "for name in sorted(", "# The", "with open(path) as file:\n",
)  # fmt: skip
GRAPH = {"genai": "onnxruntime_genai_reader.py", "optimum": "optimum_reader.py", "js": "transformers_js.mjs"}
GGUF = {"js": "llama_cpp.mjs"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    args = parser.parse_args()
    folder, work = args.folder.absolute(), args.work.absolute()
    engine = open.engine(folder) or {}
    text, runtime = Text(folder), open.open(folder, "cpu")
    prompts = [(prompt, text.ids(prompt)[0].tolist()) for prompt in PROMPTS]
    ours = [greedy(runtime, np.array([ids]), args.count, text.ends())[0] for _, ids in prompts]
    (work / "prompts.json").write_text(json.dumps(prompts))
    for environment, script in (GGUF if engine.get("format") == "gguf" else GRAPH).items():
        if not (work / environment).is_dir():
            print(f"{script}: no {work / environment}")
            continue
        given = folder / str(engine["file"]) if engine.get("format") == "gguf" else folder
        theirs = _read(work, environment, script, given, args.count)
        tokenized = sum(ids == found[0] for (_, ids), found in zip(prompts, theirs, strict=True))
        alike = sum(own == found[1] for own, found in zip(ours, theirs, strict=True))
        print(f"{script}: of {len(prompts)} prompts {tokenized} tokenized alike, {alike} continued alike")


def _read(work: Path, environment: str, script: str, given: Path, count: int) -> list[tuple[list[int], list[int]]]:
    """Run a script in its environment; return the ids of each prompt and its continuation."""
    place, out = work / environment, work / "found.json"
    if script.endswith(".mjs"):
        shutil.copyfile(HERE / script, place / script)  # beside its node_modules
        command = ["node", script]
    else:
        command = [str(place / "bin" / "python"), str(HERE / script)]
    subprocess.run([*command, str(given), str(work / "prompts.json"), str(count), str(out)], cwd=place, check=True)
    found: list[tuple[list[int], list[int]]] = [(one, two) for one, two in json.loads(out.read_text())]
    return found


if __name__ == "__main__":
    main()
