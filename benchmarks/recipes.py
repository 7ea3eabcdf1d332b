"""Applies every shipped recipe on the embedded model and renews the table of recipes/README.md.

python -m benchmarks.recipes
python -m benchmarks.recipes --jobs NIGHT/jobs    # of jobs that are there: those of `benchmarks.nightly --keep NIGHT`
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import environment, run
from runner.recipe import load

RECIPES = Path(__file__).parent.parent / "recipes"
BEGIN = "<!-- figures: made by python -m benchmarks.recipes -->"
END = "<!-- end of figures -->"
ENGINES = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.gguf", "*.engine", "*.pt2")


@dataclass(frozen=True)
class Figures:
    """Bytes of weights and perplexities of the model and of the last checkpoint; `engine` is the size of the engine

    that the recipe ends with, 0 for none; `seconds` those of all steps.
    """

    size_before: int
    size_after: int
    engine: int
    perplexity_before: float
    perplexity_after: float
    seconds: float
    memory: int


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def engine(output: Path) -> int:
    return (
        sum(f.stat().st_size for glob in ENGINES for f in output.glob(glob)) if (output / "engine.json").exists() else 0
    )


def apply(recipe: Path, folder: Path, cores: list[int]) -> Figures:
    """Apply from an empty store; the figures of its records."""
    log = folder / "log.txt"
    command = [sys.executable, "-m", "runner", "apply", str(recipe), "--jobs", "jobs", "--progress", "plain"]
    run(command, cwd=folder, log=log, cores=cores, env=environment(len(cores)))
    return figures(finished(recipe, [folder / "jobs"]))


def finished(recipe: Path, folders: list[Path]) -> Path:
    """The job of a recipe in one of the folders; the last one that came to its end."""
    name = recipe.stem.replace("_", "-")
    jobs = [path.parent for folder in folders for path in sorted(folder.glob(f"{name}-????????????/provenance.json"))]
    if not jobs:
        raise SystemExit(f"no finished job of {name} in {', '.join(map(str, folders))}")
    return jobs[-1]


def figures(job: Path) -> Figures:
    records: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((job / "steps").glob("*/record.json"))
    ]
    checkpoints = [path for path in sorted((job / "steps").iterdir()) if weights(path / "out")]
    scores = {record["id"]: record["metrics"]["perplexity"] for record in records if "perplexity" in record["metrics"]}
    return Figures(
        weights(RECIPES.parent / "runner" / "demo" / "models" / "tiny-llama"), weights(checkpoints[-1] / "out"),
        engine(job / "output"), scores["baseline"], scores["quality"],
        sum(record["seconds"] for record in records),
        max(record["memory"] for record in records),  # the kernel's mark of the worker is reset by every step
    )  # fmt: skip


def table(rows: dict[str, Figures]) -> str:
    lines = [
        "On the embedded model, two cores of an x86 server without a GPU; perplexity on 64 windows of 512 tokens:",
        "",
        "| recipe | checkpoint | engine | perplexity | seconds | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        built = f"{row.engine / 1e6:.1f} MB" if row.engine else ""
        lines.append(
            f"| [{name}]({name}) | {row.size_before / 1e6:.1f} → {row.size_after / 1e6:.1f} MB | {built} "
            f"| {row.perplexity_before:.2f} → {row.perplexity_after:.2f} | {row.seconds:.0f} "
            f"| {row.memory / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--jobs", type=Path, nargs="+", metavar="DIR", help="read the jobs of these folders instead")
    args = parser.parse_args(argv)
    rows: dict[str, Figures] = {}
    for recipe in sorted(RECIPES.glob("*.yaml")):
        if recipe.stem == "peers" or load.load(recipe).search is not None:
            continue  # their trials and tools are many jobs
        if args.jobs:
            rows[recipe.name] = figures(finished(recipe, args.jobs))
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[recipe.name] = apply(recipe, Path(folder), [int(core) for core in args.cores.split(",")])
        print(f"{recipe.name}: {rows[recipe.name]}", file=sys.stderr, flush=True)
    page = RECIPES / "README.md"
    text = page.read_text(encoding="utf-8")
    fresh = f"{BEGIN}\n\n{table(rows)}\n\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: fresh, text, flags=re.DOTALL), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
