"""What training steps win back on the embedded model: one recipe with a branch for each, from one store.

    python -m benchmarks.recovery --work WORK

"Won back" is the part of the lost log-perplexity: (log cut − log after) / (log cut − log dense). Every branch is judged
on the whole evaluation split, 334 windows of 512 tokens, which no training saw.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import applied

BATCH = {"data": "train", "batch_size": 4}
PAPER = {"data": "calibration", "asymmetric_calibration": 0}
SCALES = {**BATCH, "norms": True, "learning_rate": 0.003}


@dataclass(frozen=True)
class Branch:
    """A loss and what wins it back: each a kind and its parameters, on the model or on the result of another branch."""

    name: str
    kind: str
    params: dict[str, Any]
    source: str = "model"


DAMAGE = (
    Branch("cut", "distill.logits", {**BATCH, "student": {"drop": 2}, "steps": 1, "learning_rate": 1e-9}),
    Branch("w3", "quantize.gptq", {"data": "calibration", "bits": 3, "asymmetric_calibration": 0}),
    Branch(
        "w3-minmax", "quantize.gptq", {"data": "calibration", "bits": 3, "asymmetric_calibration": 0, "grid": "minmax"}
    ),
    Branch("w3-default", "quantize.gptq", {"data": "calibration", "bits": 3}),
    Branch("half", "prune.wanda", {"data": "calibration", "sparsity": 0.5}),
    Branch("2of4", "prune.wanda", {"data": "calibration", "pattern": "2:4"}),
)


def branches(steps: int) -> tuple[tuple[str, Branch], ...]:
    """(damage, what recovers it)."""
    cut = {**BATCH, "student": {"drop": 2}, "temperature": 1, "steps": steps, "learning_rate": 0.0007}
    return (
        ("cut", Branch("distilled", "distill.logits", {**cut, "alpha": 0})),
        ("cut", Branch("fine-tuned", "distill.logits", {**cut, "alpha": 1})),
        ("w3", Branch("w3-lora", "recover.lora", {**BATCH, "steps": steps}, "w3")),
        ("w3", Branch("w3-scales", "recover.scales", {**SCALES, "steps": 4 * steps}, "w3")),
        ("w3-minmax", Branch("w3-minmax-lora", "recover.lora", {**BATCH, "steps": steps}, "w3-minmax")),
        ("w3-minmax", Branch("w3-minmax-scales", "recover.scales", {**SCALES, "steps": 4 * steps}, "w3-minmax")),
        ("w3", Branch("w3-eora", "recover.eora", {"data": "calibration"}, "w3")),
        ("w3-default", Branch("w3-default-eora", "recover.eora", {"data": "calibration"}, "w3-default")),
        ("w3-default", Branch("w3-default-eora-paper", "recover.eora", PAPER, "w3-default")),
        ("w3-default", Branch("w3-default-lora", "recover.lora", {**BATCH, "steps": steps}, "w3-default")),
        ("half", Branch("half-lora", "recover.lora", {**BATCH, "steps": steps}, "half")),
        ("2of4", Branch("2of4-lora", "recover.lora", {**BATCH, "steps": steps}, "2of4")),
        ("half", Branch("gradual", "prune.gradual", {**BATCH, "sparsity": 0.5, "steps": steps})),
    )


def recipe(steps: int, only: list[str]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    chosen = [(damage, branch) for damage, branch in branches(steps) if not only or branch.name in only]
    needed = {damage for damage, _ in chosen}
    entries += [{"evaluate.perplexity": {"data": "evaluation"}, "id": "dense-ppl", "from": "model"}]
    for branch in (*(d for d in DAMAGE if d.name in needed), *(branch for _, branch in chosen)):
        entries.append({branch.kind: branch.params, "id": branch.name, "from": branch.source})
        entries.append({"evaluate.perplexity": {"data": "evaluation"}, "id": f"{branch.name}-ppl", "from": branch.name})
    text = {"source": "demo:stdlib", "sequence_length": 512}
    return {
        "version": 1, "name": "recovery", "model": {"source": "demo:tiny-llama"}, "steps": entries,
        "data": {
            "train": {**text, "split": "train"},
            "calibration": {**text, "split": "calibration", "samples": 128},
            "evaluation": {**text, "split": "evaluation"},
        },
    }  # fmt: skip


def table(records: dict[str, dict[str, Any]], steps: int) -> str:
    def perplexity(name: str) -> float:
        return float(records[f"{name}-ppl"]["metrics"]["perplexity"])

    dense = math.log(perplexity("dense"))
    lines = [
        f"Perplexity on 334 windows of 512 tokens; dense {perplexity('dense'):.3f}. Trained 4 windows of 512 a step.",
        "",
        "| lost by | perplexity | won back by | steps | perplexity | won back | seconds | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for damage, branch in branches(steps):
        if branch.name not in records:
            continue
        before, after = math.log(perplexity(damage)), math.log(perplexity(branch.name))
        record = records[branch.name]
        lines.append(
            f"| {damage} | {math.exp(before):.3f} | {branch.name} ({branch.kind}) | {branch.params.get('steps', '')} "
            f"| {math.exp(after):.3f} | {(before - after) / (before - dense):.0%} | {record['seconds']:.0f} "
            f"| {record['memory'] / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--steps", type=int, default=160, help="optimizer steps of a training; four times as many of scales"
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of branches")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(argv)
    folder = args.work.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(table(applied(recipe(args.steps, args.only), folder, args.cores), args.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
