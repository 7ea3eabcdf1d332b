"""Kill a job with SIGKILL at random moments, many times, and hold what comes out to an uninterrupted run.

    python -m benchmarks.kills --kills 50
    python -m benchmarks.kills --kills 50 --chain rewrite
    python -m benchmarks.kills --kills 10 --chain schemes

Every round applies one recipe on the embedded model (prune, GPTQ, perplexity, divergence; the three rewrites, a
rounding and a perplexity; or SparseGPT, NVFP4 by GPTQ and scales of its cache, static W8A8, and SignRound) in an empty
jobs folder, kills the command or its worker at a random moment, applies again, and so on until the job is done.
Checked at the end of every round: the digest of every step equals that of the uninterrupted run, and no layer was
finished twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HEAD = """\
version: 1
name: killed
model: {source: "demo:tiny-llama"}
data:
  calibration: {source: "demo:stdlib", split: calibration, samples: 32, sequence_length: 256}
  evaluation: {source: "demo:stdlib", split: evaluation, samples: 32, sequence_length: 256}
steps:
"""
CHAINS = {
    "compress": """\
  - prune.wanda: {data: calibration, sparsity: 0.3}
  - quantize.gptq: {data: calibration, bits: 4, group_size: 128, max_shard_size: 1MB}
  - evaluate.perplexity: {data: evaluation}
  - evaluate.divergence: {data: evaluation}
""",
    "rewrite": """\
  - transform.smooth: {data: calibration}
  - transform.awq: {data: calibration, bits: 4, group_size: 128, clip: true}
  - transform.rotate: {max_shard_size: 1MB}
  - quantize.rtn: {bits: 4, group_size: 128}
  - evaluate.perplexity: {data: evaluation}
""",
    "schemes": """\
  - prune.sparsegpt: {data: calibration, sparsity: 0.5}
  - quantize.gptq: {data: calibration, scheme: nvfp4}
    from: model
  - quantize.kv: {data: calibration}
  - quantize.rtn: {data: calibration, scheme: w8a8, activations: static}
    from: model
  - quantize.signround: {data: calibration, bits: 3, steps: 8}
    from: model
  - evaluate.perplexity: {data: evaluation}
""",
}


def apply(recipe: Path, jobs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "runner", "apply", str(recipe), "--jobs", str(jobs), "--progress", "none"]
    return subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def digests(jobs: Path) -> dict[str, str]:
    """Kind of step → digest of its artifact and its metrics."""
    found = {}
    for path in sorted(jobs.glob("store/*/record.json")):
        record = json.loads(path.read_text())
        found[record["kind"]] = f"{record['digest']} {json.dumps(record['metrics'], sort_keys=True)}"
    return found


def repeated_layers(jobs: Path) -> list[tuple[int, int]]:
    """Layers that the events of all attempts say were finished more than once."""
    seen: Counter[tuple[int, int]] = Counter()
    for path in jobs.glob("*/events.jsonl"):
        for line in path.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the line that was being written when the kill came
                continue
            if event["event"] == "layer":
                seen[event["step"], event["layer"]] += 1
    return [layer for layer, count in seen.items() if count > 1]


def victim(process: subprocess.Popen[bytes], chance: random.Random) -> int:
    """The command, or its worker where there is one."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    pids = [process.pid, *(int(p) for p in children.stdout.split())]
    return chance.choice(pids)


def one_round(recipe: Path, jobs: Path, longest: float, chance: random.Random, budget: int) -> int:
    """Apply until done, killing at most `budget` times; returns the number of kills."""
    kills = 0
    while True:
        process = apply(recipe, jobs)
        wait = chance.uniform(0.05, longest) if kills < budget else None
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            os.kill(victim(process, chance), signal.SIGKILL)
            kills += 1
            process.communicate()
            continue
        if process.returncode == 0:
            return kills
        sys.exit(f"apply exited {process.returncode} after {kills} kills: {errors.decode()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--chain", choices=sorted(CHAINS), default="compress")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "killed.yaml"
        recipe.write_text(HEAD + CHAINS[arguments.chain])
        started = time.perf_counter()
        one_round(recipe, Path(folder) / "whole", 0, chance, budget=0)
        seconds = time.perf_counter() - started
        expected = digests(Path(folder) / "whole")
        again = Path(folder) / "again"
        one_round(recipe, again, 0, chance, budget=0)
        if digests(again) != expected:
            sys.exit("two uninterrupted runs in empty stores differ")
        print(f"uninterrupted: {seconds:.1f} s, {len(expected)} steps; a second run in an empty store is equal")
        kills = rounds = 0
        while kills < arguments.kills:
            jobs = Path(folder) / "killed"
            killed = one_round(recipe, jobs, seconds, chance, arguments.kills - kills)
            kills, rounds = kills + killed, rounds + 1
            print(f"round {rounds}: {killed} kills, {kills} in all", flush=True)
            if digests(jobs) != expected:
                sys.exit(f"after {killed} kills the result differs: {digests(jobs)} instead of {expected}")
            if repeated_layers(jobs):
                sys.exit(f"layers were finished twice: {repeated_layers(jobs)}")
            shutil.rmtree(jobs)
        print(f"{kills} kills in {rounds} rounds: every digest and metric equal, no layer finished twice")


if __name__ == "__main__":
    main()
