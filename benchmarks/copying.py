"""Time and memory of rounding a random checkpoint to 8 bits without data, beside copying it and beside llm-compressor.

    python -m benchmarks.random_llama 50x2048 WORK/models/50x2048       # 6.1 GB
    python -m benchmarks.copying WORK/models/50x2048 --work WORK --peer llm-compressor=ENVIRONMENT/bin/python

`cp` is followed by `sync` of the copy, as `runner` writes its files; all run one after another on the same cores. The
peer runs `model_free_ptq`, which, like `quantize.rtn`, never builds the model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure, tools

SCHEMES = {"fp8": "FP8_DYNAMIC", "w8a8": "W8A8"}  # ours → the peer's
_COPY = 'cp -r "$0" copy && sync copy/*'
_PEER = (
    "import sys; from llmcompressor import model_free_ptq; "
    "model_free_ptq(sys.argv[1], 'out', scheme=sys.argv[2], ignore=['lm_head', 're:.*embed_tokens'], "
    "max_workers=int(sys.argv[3]), device='cpu')"
)


@dataclass(frozen=True)
class Turn:
    """What is run in an empty folder, and what it is called."""

    name: str
    command: list[str]
    recipe: str = ""


def turns(model: Path, others: dict[str, str], cores: int) -> list[Turn]:
    """Return copying, our schemes, and those of the peer."""
    found = [Turn("cp", ["bash", "-c", _COPY, str(model)])]
    for scheme, name in SCHEMES.items():
        document = {"version": 1, "name": "copying", "model": {"source": str(model)},
                    "steps": [{"quantize.rtn": {"scheme": scheme}}]}  # fmt: skip
        command = [sys.executable, "-m", "runner", "apply", "recipe.yaml", "--jobs", "jobs", "--progress", "plain"]
        found.append(Turn(f"runner, {scheme}", command, json.dumps(document)))
        found += [
            Turn(f"{tool}, {name}", [python, "-c", _PEER, str(model), name, str(cores)])
            for tool, python in others.items()
        ]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a folder for results; made if missing")
    parser.add_argument("--peer", action="append", default=[], help="llm-compressor=PYTHON")
    parser.add_argument("--cores", default="0,1")
    args = parser.parse_args(argv)
    cores = tools.cores(args)
    print("| | seconds | processor seconds | peak MB |\n|---|---|---|---|", flush=True)
    for turn in turns(args.model.absolute(), tools.peers(args), len(cores)):
        folder = args.work.absolute() / "turn"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if turn.recipe:
            (folder / "recipe.yaml").write_text(turn.recipe)
        env = measure.environment(len(cores))
        done = measure.run(turn.command, cwd=folder, log=folder / "log.txt", cores=cores, env=env)
        print(f"| {turn.name} | {done.seconds:.1f} | {done.cpu:.1f} | {done.memory / 1e6:.0f} |", flush=True)
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
