"""A search that is killed, and one with two steps at a time, against one that is neither; and what its best is worth.

    python -m benchmarks.searches --work WORK [--kills 5] [--set NAME=VALUE ...] [--rivals llama_int4_onnx ...]

The search of `--recipe` is applied in WORK/whole; in WORK/killed, where SIGKILL ends the command at random
moments, and it is applied again until it is done; and in WORK/two with `--jobs-at-once 2`. All three must have
the same trials, values measured, winner, and digests of steps. Then `--rivals`, shipped recipes, are applied as they
are, and they and the winner are judged in plain transformers on all windows of the evaluation text, which is more than
the search has seen.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tokens
from benchmarks.measure import environment, run
from benchmarks.recipes import RECIPES, finished, weights

PERPLEXITY = Path(__file__).parent / "perplexity.py"


def apply(recipe: Path, jobs: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    jobs.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "runner", "apply", str(recipe), "--jobs", str(jobs), "--progress", "none", *words]
    with (jobs.parent / f"{jobs.name}.log").open("ab") as log:
        return subprocess.Popen([*command, "--threads", "1"], stdout=log, stderr=subprocess.STDOUT, env=environment(1))


def whole(recipe: Path, jobs: Path, words: Sequence[str]) -> float:
    """Apply without interruption; the seconds it took."""
    started = time.perf_counter()
    if code := apply(recipe, jobs, words).wait():
        raise SystemExit(f"apply exited {code}: see {jobs}.log")
    return time.perf_counter() - started


def killed(
    recipe: Path, jobs: Path, words: Sequence[str], kills: int, seconds: float, chance: random.Random
) -> list[int]:
    """Apply, with SIGKILL at `kills` random moments of a run that takes `seconds`; the trials finished at each."""
    done: list[int] = []
    while len(done) < kills:
        process = apply(recipe, jobs, words)
        try:
            process.wait(timeout=chance.uniform(0.3, 1.0) * seconds / (kills + 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done.append(len(list(jobs.glob("*/provenance.json"))))
            continue
        break  # done before the last kill
    whole(recipe, jobs, words)
    return done


def found(jobs: Path) -> dict[str, Any]:
    """The trials of a search and its steps' digests by key."""
    (path,) = jobs.glob("searches/*/search.json")
    state = json.loads(path.read_text(encoding="utf-8"))
    names = ("number", "values", "state", "measured", "job")
    records = (json.loads(record.read_text(encoding="utf-8")) for record in sorted(jobs.glob("store/*/record.json")))
    return {
        "status": state["status"],
        "trials": [{name: trial[name] for name in names} for trial in state["trials"]],
        "digests": {record["key"]: [record["digest"], record["metrics"]] for record in records},
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    for name in one:
        if one[name] != other[name]:
            return f"`{name}` differ: {one[name]} and {other[name]}"
    return ""


def best(jobs: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "runner", "search", "best", "--jobs", str(jobs), "--json"]
    trial: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return trial


def checkpoint(job: Path) -> Path:
    return [path / "out" for path in sorted((job / "steps").iterdir()) if weights(path / "out")][-1]


def perplexity(model: Path, ids: Path, dtype: str) -> float:
    command = [sys.executable, str(PERPLEXITY), str(model), str(ids), "--dtype", dtype]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(1)).stdout
    return float(json.loads(printed.splitlines()[-1])["perplexity"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "llama_search.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="params of the search")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--rivals", nargs="*", default=["llama_int4_onnx", "llama_w4_awq"])
    parser.add_argument("--dtype", default="float32", help="of the judge")
    args = parser.parse_args(argv)
    work = args.work.absolute()
    words = [word for value in args.set for word in ("--set", value)]
    seconds = whole(args.recipe, work / "whole", words)
    expected = found(work / "whole")
    print(f"uninterrupted: {len(expected['trials'])} trials, {seconds:.0f} s", flush=True)
    if args.kills:
        at = killed(args.recipe, work / "killed", words, args.kills, seconds, random.Random(args.seed))
        said = differences(expected, found(work / "killed")) or "the same trials, measures, winner and digests"
        print(f"killed {len(at)} times, after {', '.join(map(str, at))} trials: {said}", flush=True)
        two = whole(args.recipe, work / "two", [*words, "--jobs-at-once", "2"])
        said = differences(expected, found(work / "two")) or "the same trials, measures, winner and digests"
        print(f"two at once, {two:.0f} s: {said}", flush=True)
    ids = work / "evaluation.npy"
    tokens.main(["evaluation", "all", "512", str(ids)])
    trial = best(work / "whole")
    models = {f"trial {trial['number']}": checkpoint(work / "whole" / trial["job"])}
    for rival in args.rivals:
        command = [
            sys.executable,
            "-m",
            "runner",
            "apply",
            str(RECIPES / f"{rival}.yaml"),
            "--jobs",
            str(work / "rivals"),
        ]
        run([*command, "--progress", "plain"], cwd=work, log=work / f"{rival}.log", cores=[0, 1], env=environment(2))
        models[rival] = checkpoint(finished(RECIPES / f"{rival}.yaml", [work / "rivals"]))
    print(f"{trial['values']}\n\n| | weights | perplexity on all windows |\n|---|---|---|", flush=True)
    for name, model in models.items():
        print(f"| {name} | {weights(model) / 1e6:.4f} MB | {perplexity(model, ids, args.dtype):.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
