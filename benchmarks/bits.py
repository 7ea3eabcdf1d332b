"""`bits: auto` against uniform and naive assignments of equal size, and its forecasts against what is measured.

    python -m benchmarks.bits --work WORK [--random 30] [--samples 32] [--windows 16]

GPTQ to each assignment on the embedded model (or `--model`), then perplexity on the evaluation text. Random assignments
draw one of 2, 3, 4 and 8 bits for each group of modules that servers fuse, and round to nearest, as the sensitivities
are measured; a measured loss is the divergence from the model in nats per token, on half the windows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import runner
from runner.contracts.sensitivity import Sensitivity
from runner.recipe.syntax import yaml_text

MEASURES = ("output_error", "gradient", "kl")
CANDIDATES = (2, 3, 4, 8)
AVERAGE = 3.5
Step = dict[str, Any]


def rivals(count: int) -> dict[str, Step]:
    """Return the assignments that need no measurement: uniform ones, and more bits in the first and last layers."""
    ends = {f"*.layers.{layer}.*": {"bits": 4} for layer in (0, count - 1)}
    return {
        "uniform 3 bits": {"bits": 3},
        "uniform 3 bits, groups of 32": {"bits": 3, "group_size": 32},
        "uniform 4 bits": {"bits": 4},
        "3 bits, 4 in the first and last layer": {"bits": 3, "overrides": ends},
    }


def drawn(groups: Sequence[Sequence[str]], count: int, seed: int) -> list[dict[str, int]]:
    """Return random assignments: site → bits, equal within a group."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        chosen = [draw.choice(CANDIDATES) for _ in groups]
        found.append({name: bits for group, bits in zip(groups, chosen, strict=True) for name in group})
    return found


def forecast(measured: Sensitivity, bits: Mapping[str, int]) -> float:
    return math.fsum(group.losses[str(bits[next(iter(group.sites))])] for group in measured.groups)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the rank correlation of two lists without ties."""
    ranks = [{value: rank for rank, value in enumerate(sorted(values))} for values in (one, other)]
    n = len(one)
    squares = sum((ranks[0][a] - ranks[1][b]) ** 2 for a, b in zip(one, other, strict=True))
    return 1 - 6 * squares / (n * (n * n - 1))


def recipe(args: argparse.Namespace, assignments: Mapping[str, Step], measured: bool) -> dict[str, Any]:
    """Return a recipe that measures, where asked, and quantizes and evaluates each assignment; else by rounding."""
    windows = {"source": "demo:stdlib", "sequence_length": 512}
    steps: list[Step] = []
    if measured:
        steps.append({"evaluate.perplexity": {"data": "evaluation"}, "id": "dense", "from": "model"})
    for measure in MEASURES if measured else ():
        data = "few" if measure == "kl" else "calibration"
        steps.append({"analyze.sensitivity": {"data": data, "measure": measure}, "id": measure, "from": "model"})
    for id, params in assignments.items():
        step = {"quantize.gptq": {"data": "calibration", **params}} if measured else {"quantize.rtn": params}
        steps.append({**step, "id": id, "from": "model"})
        quality = (
            {"evaluate.perplexity": {"data": "evaluation"}}
            if measured
            else {"evaluate.divergence": {"data": "evaluation"}}
        )
        steps.append({**quality, "id": f"{id}-quality", "from": id})
    return {
        "version": 1,
        "name": "bits",
        "model": {"source": args.model},
        "data": {
            "evaluation": {**windows, "split": "evaluation", "samples": args.windows // (1 if measured else 2)},
            **({"calibration": {**windows, "split": "calibration", "samples": args.samples}} if measured else {}),
            **({"few": {**windows, "split": "calibration", "samples": args.few}} if measured else {}),
        },
        "steps": steps,
    }


def apply(args: argparse.Namespace, name: str, document: Mapping[str, Any]) -> runner.Job:
    file = args.work / f"{name}.yaml"
    file.write_text(yaml_text.dump(document))
    return runner.apply(runner.plan(runner.load(file), jobs=args.work / "jobs"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for recipes and jobs; made if missing")
    parser.add_argument("--model", default="demo:tiny-llama")
    parser.add_argument("--layers", type=int, default=6, help="decoder layers of the model")
    parser.add_argument("--random", type=int, default=30, help="random assignments")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows of 512 tokens")
    parser.add_argument("--few", type=int, default=4, help="calibration windows for `measure: kl`")
    parser.add_argument(
        "--given", nargs="*", default=[], metavar="NAME=FILE", help="assignments of other tools: bits by module"
    )
    parser.add_argument("--windows", type=int, default=16, help="evaluation windows of 512 tokens")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    named = rivals(args.layers)
    named |= {
        f"auto by {measure}": {"bits": "auto", "sensitivity": measure, "budget": {"average_bits": AVERAGE}}
        for measure in MEASURES
    }
    for word in args.given:
        name, _, path = word.partition("=")
        bits = json.loads(Path(path).read_text(encoding="utf-8"))
        named[name] = {"group_size": 128, "overrides": {module: {"bits": each} for module, each in bits.items()}}
    ids = {name: f"a{number}" for number, name in enumerate(named)}
    job = apply(args, "bits-auto", recipe(args, {ids[name]: params for name, params in named.items()}, measured=True))
    metrics, records = job.metrics, job.records
    dense = metrics["dense"]["perplexity"]
    print("| assignment | size | perplexity |\n|---|---|---|")
    print(f"| dense | | {dense:.3f} |")
    for name, id in ids.items():
        size = metrics[id]["bytes"] / 1e6
        print(f"| {name} | {size:.2f} MB | {metrics[f'{id}-quality']['perplexity']:.3f} |")
    measured = {measure: Sensitivity.from_json(records[measure].details["sensitivity"]) for measure in MEASURES}
    groups = [tuple(group.sites) for group in measured["kl"].groups]
    assignments = drawn(groups, args.random, seed=1)
    written = {f"r{n}": {"group_size": 128, "overrides": {name: {"bits": bits} for name, bits in own.items()}}
               for n, own in enumerate(assignments)}  # fmt: skip
    sys.stdout.flush()
    metrics = apply(args, "bits-random", recipe(args, written, measured=False)).metrics
    lost = [metrics[f"r{n}-quality"]["kl"] for n in range(args.random)]
    print(f"\nLoss of {args.random} random assignments: {min(lost):.4f} to {max(lost):.4f} nats\n")
    print("| measure | Spearman | forecast over measured, median |\n|---|---|---|")
    for measure, found in measured.items():
        guessed = [forecast(found, own) for own in assignments]
        ratios = sorted(a / b for a, b in zip(guessed, lost, strict=True))
        ratio = f"{ratios[len(ratios) // 2]:.2f}" if found.unit != "relative squared error" else ""
        print(f"| {measure} | {spearman(guessed, lost):.3f} | {ratio} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
