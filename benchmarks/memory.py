"""Peak memory of quantizing as a model gets deeper: ours and, of GPTQ, a peer's, on random Llamas of one width.

python -m benchmarks.memory --work /tmp/bench --layers 8 16 32 64 --peer llm-compressor=LLMC/bin/python
python -m benchmarks.memory --work /tmp/bench --layers 8 64 --step quantize.signround --steps 8
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import random_llama, tools
from benchmarks.tools import OURS, Task

STEPS = ("quantize.gptq", "quantize.rtn", "quantize.signround")
PREDICTED = "`runner plan` forecast"


def table(title: str, peaks: dict[str, dict[int, int]], sizes: dict[int, int]) -> str:
    """Markdown: a row for each depth, a column for each tool, and the growth from the first row to the last."""
    names = list(peaks)
    depths = list(sizes)
    lines = [
        title,
        "",
        f"| layers | model | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for depth in depths:
        cells = " | ".join(f"{peaks[name][depth] / 1e6:.0f}" for name in names)
        lines.append(f"| {depth} | {sizes[depth] / 1e6:.0f} | {cells} |")
    growth = " | ".join(f"{100 * (peaks[name][depths[-1]] / peaks[name][depths[0]] - 1):+.1f} %" for name in names)
    lines.append(f"| growth | | {growth} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tools.add_arguments(parser)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--hidden", type=int, choices=sorted(random_llama.WIDTHS), default=512)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--step", choices=STEPS, default=STEPS[0], help="the kind; a peer runs GPTQ whatever it is")
    parser.add_argument("--steps", type=int, help="`steps` of `quantize.signround`, which memory does not depend on")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    args = parser.parse_args(argv)
    args.work = args.work.absolute()
    others = tools.peers(args)
    params = {} if args.steps is None else {"steps": args.steps}
    peaks: dict[str, dict[int, int]] = {name: {} for name in (OURS, PREDICTED, *others)}
    sizes: dict[int, int] = {}
    for depth in args.layers:
        name = f"{depth}x{args.hidden}"
        folder = args.work / "models" / name
        if not folder.exists():
            random_llama.write(folder, depth, args.hidden)
        sizes[depth] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        task = Task(name, folder, args.samples, args.length, step=args.step, params=params)
        for tool in (OURS, *others):
            python = tools.python_of(tool, others)
            done = tools.quantize(tool, python, task, args.work / "runs" / tool, tools.cores(args))
            peaks[tool][depth] = done.measure.memory
            print(f"{name} {tool}: {done.measure}", file=sys.stderr, flush=True)
        peaks[PREDICTED][depth] = tools.predicted_memory(sys.executable, task, args.work / "runs" / OURS)
    how = f"`{args.step}`, W4 g128, hidden size {args.hidden}, {args.samples} × {args.length} tokens"
    text = table(f"Peak resident memory of {how}, in MB:", peaks, sizes)
    print(text)
    if args.out:
        with args.out.open("a", encoding="utf-8") as out:
            out.write("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
