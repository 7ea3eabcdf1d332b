"""Ours against its peers: wall and processor time, and peak memory, of whole processes on the same model and tokens.

    python -m benchmarks.speed demo --work /tmp/bench --runs 3 \\
        --peer llm-compressor=LLMC/bin/python --peer GPTQModel=GPTQM/bin/python
    python -m benchmarks.speed 12x512 --work /tmp/bench --samples 16 --length 256 ...
    python -m benchmarks.speed 2x2048 --work /tmp/bench --samples 32 ...
    python -m benchmarks.speed /tmp/bench/smollm2 --work /tmp/bench --samples 64 --group-size 64 ...
    python -m benchmarks.speed demo --work /tmp/bench --step quantize.signround --params '{"steps": 48}' --bits 3 \\
        --peer AutoRound=AUTOROUND/bin/python
    python -m benchmarks.speed demo --work /tmp/bench --rewrite transform.awq --step quantize.rtn \\
        --params '{"grid": "weighted_mse", "data": "calibration"}' --peer AWQ=LLMC/bin/python
    python -m benchmarks.speed demo --work /tmp/bench --rewrite transform.smooth --params '{"scheme": "w8a8"}' \\
        --peer SmoothQuant=LLMC/bin/python

Tools take turns, so that a slow spell of the machine meets them all; the table has medians. What each leaves of a model
that is not random is judged on the evaluation split. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import random_llama, tokens, tools
from benchmarks.tools import OURS, Outcome, Task


def prepare(args: argparse.Namespace) -> Task:
    """Return the task that the arguments name; a random model is made where it is missing."""
    how = {"samples": args.samples, "length": args.length, "bits": args.bits, "group_size": args.group_size,
           "step": args.step, "params": json.loads(args.params), "rewrite": args.rewrite,
           "dtype": args.dtype}  # fmt: skip
    if args.model == "demo":
        return Task("demo", tokens.TINY_LLAMA, **how)
    folder = Path(args.model).absolute()
    if (folder / "config.json").is_file():
        return Task(folder.name, folder, **how)
    folder = args.work / "models" / args.model
    if not folder.exists():
        random_llama.write(folder, *random_llama.parse_size(args.model))
    return Task(args.model, folder, **how, is_random=True)


def table(task: Task, outcomes: dict[str, list[Outcome]], scores: dict[str, float]) -> str:
    """Return Markdown: medians of every tool, and how many times longer than ours each took.

    `scores` holds perplexities by tool, and the model's own under "dense".
    """

    def middle(tool: str, name: str) -> float:
        return float(median(getattr(outcome.measure, name) for outcome in outcomes[tool]))

    runs = len(outcomes[OURS])
    counted = "one run" if runs == 1 else f"medians of {runs} runs"
    step = f"{task.rewrite}, {task.step}" if task.rewrite else task.step
    numbers = f"W{task.bits} g{task.group_size}" if task.numbers else task.params["scheme"]
    title = f"{step} {numbers} on {task.name}, {task.samples} × {task.length} tokens, {counted}"
    lines = [
        f"{title}, dense perplexity {scores['dense']:.3f}:" if "dense" in scores else f"{title}:",
        "",
        "| tool | wall s | range | times ours | CPU s | peak MB | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    for tool in outcomes:
        walls = [outcome.measure.seconds for outcome in outcomes[tool]]
        ratio = middle(tool, "seconds") / middle(OURS, "seconds")
        score = f"{scores[tool]:.3f}" if tool in scores else ""
        lines.append(
            f"| {tool} | {middle(tool, 'seconds'):.1f} | {min(walls):.1f}–{max(walls):.1f} | {ratio:.1f} "
            f"| {middle(tool, 'cpu'):.1f} | {middle(tool, 'memory') / 1e6:.0f} | {score} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="`demo`, a folder, or the LAYERSxHIDDEN of a random Llama")
    tools.add_arguments(parser)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--step", default="quantize.gptq", help="the kind that ours quantizes by")
    parser.add_argument("--params", default="{}", help="its further parameters, as JSON")
    parser.add_argument("--rewrite", default="", help="a kind of `transform.` before it")
    parser.add_argument("--dtype", default="", help="what llm-compressor and the judge compute in; default: as ever")
    parser.add_argument("--evaluation-samples", type=int, help="windows of 512 tokens to judge on; default: all")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    args = parser.parse_args(argv)
    args.work = args.work.absolute()
    others = tools.peers(args)
    task = prepare(args)
    outcomes: dict[str, list[Outcome]] = {tool: [] for tool in (OURS, *others)}
    for turn in range(1, args.runs + 1):
        for tool in outcomes:
            python = tools.python_of(tool, others)
            done = tools.quantize(tool, python, task, args.work / "runs" / tool, tools.cores(args), args.device)
            outcomes[tool].append(done)
            print(f"run {turn}/{args.runs} {tool}: {done.measure}", file=sys.stderr, flush=True)
    scores: dict[str, float] = {}
    if not task.is_random:
        evaluation = args.work / "evaluation.npy"
        np.save(evaluation, tokens.windows("evaluation", args.evaluation_samples, 512, task.model))
        scores["dense"] = tools.perplexity("dense", sys.executable, task.model, evaluation, task.dtype)
        for tool in outcomes:
            python = tools.python_of(tool, others)
            scores[tool] = tools.perplexity(tool, python, outcomes[tool][-1].checkpoint, evaluation, task.dtype)
    text = table(task, outcomes, scores)
    print(text)
    if args.out:
        with args.out.open("a", encoding="utf-8") as out:
            out.write("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
