"""What structured pruning costs on the embedded model, and what distillation wins back: a recipe with a branch a cut.

    python -m benchmarks.structure --work WORK

"Won back" is the part of the lost log-perplexity: (log cut − log after) / (log cut − log dense). Every branch is judged
on 64 windows of 512 tokens of the evaluation split, which neither calibration nor training saw. The model and the cuts
that are taught become ONNX graphs, too, which are compared with their checkpoints and timed in onnxruntime.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import applied

QUARTER = {"data": "calibration", "feed_forward": {"drop": 0.25}}


@dataclass(frozen=True)
class Cut:
    """A cut of the model; `heals` is whether the unpruned model teaches what is left."""

    name: str
    kind: str
    params: dict[str, Any]
    heals: bool = False


CUTS = (
    Cut("ffn", "prune.width", QUARTER, heals=True),
    Cut("depth", "prune.depth", {"data": "calibration", "drop": 2}, heals=True),
    Cut("ffn-l2", "prune.width", {**QUARTER, "aggregation": "l2"}),
    Cut("ffn-magnitude", "prune.width", {**QUARTER, "criterion": "magnitude"}),
    Cut("ffn-random", "prune.width", {**QUARTER, "criterion": "random"}),
    Cut("heads", "prune.width", {"data": "calibration", "heads": {"drop": 0.5}}),
    Cut("heads-magnitude", "prune.width", {"data": "calibration", "heads": {"drop": 0.5}, "criterion": "magnitude"}),
    Cut("heads-random", "prune.width", {"data": "calibration", "heads": {"drop": 0.5}, "criterion": "random"}),
    Cut("hidden", "prune.width", {"data": "calibration", "hidden_size": {"drop": 0.25}}),
    Cut("hidden-magnitude", "prune.width", {"data": "calibration", "hidden_size": {"drop": 0.25},
                                            "criterion": "magnitude"}),
    Cut("hidden-random", "prune.width", {"data": "calibration", "hidden_size": {"drop": 0.25}, "criterion": "random"}),
    Cut("depth-perplexity", "prune.depth", {"data": "calibration", "drop": 2, "choose": "perplexity"}),
    Cut("depth-even", "prune.depth", {"drop": 2, "choose": "even"}),
)  # fmt: skip
HEALING = {"data": "train", "batch_size": 4, "alpha": 0, "temperature": 1, "learning_rate": 0.0007}


def chosen(only: list[str]) -> list[Cut]:
    return [cut for cut in CUTS if not only or cut.name in only]


def recipe(steps: int, only: list[str]) -> dict[str, Any]:
    """Return the recipe of every cut, and of a distillation of those that heal."""
    entries: list[dict[str, Any]] = [{"evaluate.perplexity": {"data": "evaluation"}, "id": "dense-ppl"}]

    def judge(name: str) -> dict[str, Any]:
        return {"evaluate.perplexity": {"data": "evaluation"}, "id": f"{name}-ppl", "from": name}

    def timed(name: str, source: str) -> list[dict[str, Any]]:
        return [
            {"build.onnx": {"embedding": "dense"}, "id": f"{name}-graph", "from": source},
            {"evaluate.parity": {"data": "evaluation"}, "id": f"{name}-parity", "from": f"{name}-graph"},
            {"evaluate.latency": {"repetitions": 30}, "id": f"{name}-speed", "from": f"{name}-graph"},
        ]

    entries += timed("dense", "model")
    for cut in chosen(only):
        entries += [{cut.kind: cut.params, "id": cut.name, "from": "model"}, judge(cut.name)]
        if cut.heals:
            healed = f"{cut.name}-healed"
            entries += [{"distill.logits": {**HEALING, "steps": steps}, "id": healed, "from": cut.name}, judge(healed)]
            entries += timed(cut.name, cut.name)
    text = {"source": "demo:stdlib", "sequence_length": 512}
    return {
        "version": 1, "name": "structure", "model": {"source": "demo:tiny-llama"}, "steps": entries,
        "data": {
            "train": {**text, "split": "train"},
            "calibration": {**text, "split": "calibration", "samples": 128},
            "evaluation": {**text, "split": "evaluation", "samples": 64},
        },
    }  # fmt: skip


def table(records: dict[str, dict[str, Any]], steps: int) -> str:
    """Return the table of results, by the records of steps."""

    def perplexity(name: str) -> float:
        return float(records[f"{name}-ppl"]["metrics"]["perplexity"])

    dense = math.log(perplexity("dense"))
    lines = [
        f"Perplexity on 64 windows of 512 tokens; dense {perplexity('dense'):.3f}. {steps} steps of 4 windows.",
        "",
        "| cut | parameters | perplexity | distilled | won back | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for cut in CUTS:
        if cut.name not in records:
            continue
        metrics, seconds = records[cut.name]["metrics"], records[cut.name]["seconds"]
        before = math.log(perplexity(cut.name))
        row = [cut.name, f"{metrics['parameters'] / 1e6:.2f} M", f"{math.exp(before):.3f}", "", "", f"{seconds:.0f}"]
        if f"{cut.name}-healed" in records:
            after = math.log(perplexity(f"{cut.name}-healed"))
            row[3:] = [f"{math.exp(after):.3f}", f"{(before - after) / (before - dense):.0%}",
                       f"{seconds:.0f} + {records[f'{cut.name}-healed']['seconds']:.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def speeds(records: dict[str, dict[str, Any]]) -> str:
    """Return the table of graphs: difference of logits from the checkpoint, and tokens a second."""
    lines = [
        "| graph | largest difference of a logit | greedy agreement | prefill, tokens/s | decoding, tokens/s |",
        "|---|---|---|---|---|",
    ]
    for name in ("dense", *(cut.name for cut in CUTS if f"{cut.name}-speed" in records)):
        parity, speed = records[f"{name}-parity"]["metrics"], records[f"{name}-speed"]["metrics"]
        lines.append(
            f"| {name} | {parity['max_logit_difference']:.1e} | {parity['greedy_agreement']:.0%} "
            f"| {speed['prefill_tokens_per_second']:.0f} | {speed['decode_tokens_per_second']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a distillation")
    parser.add_argument("--only", nargs="*", default=[], help="names of cuts")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(argv)
    folder = args.work.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    records = applied(recipe(args.steps, args.only), folder, args.cores)
    print(table(records, args.steps))
    print(speeds(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
