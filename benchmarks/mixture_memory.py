"""Peak memory of quantizing a random mixture of experts, and what `runner plan` forecast.

    python -m benchmarks.mixture_memory 2x64  --work WORK
    python -m benchmarks.mixture_memory 15x64 --work WORK     # 12.4 GB; takes 30 GB of disk and some hours on two cores

The model is that of `benchmarks.random_mixture`. It and what is made of it are deleted at the end.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks import random_mixture, tools
from benchmarks.tools import OURS, Task

KINDS = ("quantize.rtn", "quantize.gptq")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="LAYERSxEXPERTS, such as 15x64")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the model and results; made if missing")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    args = parser.parse_args(argv)
    work = args.work.absolute()
    model = work / args.size
    if not model.exists():
        random_mixture.main([args.size, str(model)])
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"| {args.size}, {size / 1e9:.2f} GB | seconds | peak MB | forecast MB |\n|---|---|---|---|", flush=True)
    for kind in args.kinds:
        task = Task(args.size, model, args.samples, args.length, is_random=True, step=kind)
        done = tools.quantize(OURS, sys.executable, task, work / "run", [0, 1]).measure
        forecast = tools.predicted_memory(sys.executable, task, work / "run")
        print(f"| {kind} | {done.seconds:.0f} | {done.memory / 1e6:.0f} | {forecast / 1e6:.0f} |", flush=True)
    for folder in (model, work / "run"):
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
