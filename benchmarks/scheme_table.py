"""The table of jobs of schemes.yaml: perplexity of every scheme by every solver, and what is noise in it.

    runner apply benchmarks/schemes.yaml --jobs WORK/jobs && python -m benchmarks.scheme_table WORK/jobs

Beside GPTQ's perplexity stands its distance from rounding in percent, with the paired 95 % interval over windows: where
that holds 0, the two do not differ on this text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from runner.job.intervals import interval

COLUMNS = ("rtn", "rtn_weighted", "gptq", "rewritten_rtn", "rewritten_gptq", "signround")
TITLES = (
    "scheme", "rtn", "rtn, `weighted_mse`", "gptq", "gptq over rtn, %", "rewrite", "rewrite, rtn", "rewrite, gptq",
    "signround",
)  # fmt: skip


def measured(job: Path) -> dict[str, dict[str, Any]]:
    """Records of a job by the id of their step."""
    found = (json.loads(path.read_text("utf-8")) for path in sorted(job.glob("steps/*/record.json")))
    return {record["id"]: record for record in found}


def difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """By how many percent the first perplexity is above the second, with the paired interval."""
    mine, theirs = (record["details"]["samples"]["loss"] for record in (first, second))
    apart = [a - b for a, b in zip(mine, theirs, strict=True)]
    ends = (sum(apart) / len(apart), *interval(apart, 0.95))
    mean, low, high = (100 * (math.exp(end) - 1) for end in ends)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def row(params: dict[str, Any], records: dict[str, dict[str, Any]]) -> str:
    scores = {
        name: f"{records[name]['metrics']['perplexity']:.3f}" if name in records else "" for name in ("dense", *COLUMNS)
    }
    name = f"`{params['scheme']}`" + (", static" if params["activations"] == "static" else "")
    apart = difference(records["gptq"], records["rtn"]) if {"gptq", "rtn"} <= records.keys() else ""
    cells = (
        name, scores["rtn"], scores["rtn_weighted"], scores["gptq"], apart, params["rewrite"], scores["rewritten_rtn"],
        scores["rewritten_gptq"], scores["signround"],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path)
    args = parser.parse_args(argv)
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    for job in sorted(args.jobs.glob("schemes-*"), key=lambda path: (path / "plan.json").stat().st_mtime):
        records = measured(job)
        if "dense" in records:
            print(row(json.loads((job / "plan.json").read_text("utf-8"))["matrix"], records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
