"""A night over every shipped recipe in which one misses its gate and the worker of another is killed.

    python -m benchmarks.nightly            # as they are, about 15 minutes of two cores
    python -m benchmarks.nightly --quick --only llama_2of4,llama_int3,llama_int8_rtn    # to try the script
    python -m benchmarks.nightly --quick --workers 1 2 4 --without peers,llama_search    # nights without faults, timed

Three runs of `runner apply FOLDER --keep-going --junit FILE` in one jobs folder: the bad night, the night after it, and
one with the gate mended. Checked: exit codes, the one summary, the JUnit file, which steps each run computed, and that
the killed job ends with the bytes of one that nobody killed. The first thing that is not so ends the script.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = {
    "samples": 16, "train_samples": 16, "evaluation_samples": 4, "sequence_length": 128, "batch_size": 2, "gate": 5.0,
    "steps": 4, "distill_steps": 4, "recover_steps": 4,
}  # fmt: skip
MISSED, LIMIT = "llama_int8_rtn", 0.5  # the recipe whose gate is made stricter, and to what
KILLED, STEP, LAYER = "llama_2of4", "quantize.gptq", 2  # whose worker is killed, once that layer of the step is done
SIGKILLED, GATE_MISSED = 4, 3


@dataclass(frozen=True)
class Night:
    """What a run said and did: `rows` of its summary by job, `ran` and `cached`: the steps of each job by id."""

    exit_code: int
    seconds: float
    rows: dict[str, list[str]]
    ran: dict[str, list[str]]
    cached: dict[str, list[str]]
    resumed: dict[str, int]


def need(so: bool, what: str) -> None:
    if not so:
        sys.exit(f"not so: {what}")


def child(stem: str, params: dict[str, float], gate: float | None) -> str:
    """A recipe that extends the shipped one: with other params, and another limit in its gate on `quality`."""
    lines = ["version: 1", f"name: {stem.replace('_', '-')}", f"extends: ../shipped/{stem}.yaml"]
    if params:
        lines.append("params: {" + ", ".join(f"{name}: {value}" for name, value in params.items()) + "}")
    if gate is not None:
        rule = f"{{max_ratio_to: baseline, value: {gate}}}"
        lines += ["steps:", "  - id: quality", f"    evaluate.perplexity: {{gates: {{perplexity: {rule}}}}}"]
    return "\n".join(lines) + "\n"


def write(folder: Path, only: list[str], quick: bool, gate: float | None, without: list[str] | None = None) -> None:
    """The folder of recipes: copies of the shipped ones, but for what is changed; `only` some, where it names any."""
    shipped = folder / "shipped"
    if not shipped.exists():
        shutil.copytree(RECIPES, shipped)
    nightly = folder / "nightly"
    nightly.mkdir(exist_ok=True)
    for recipe in sorted(shipped.glob("*.yaml")):
        if (only and recipe.stem not in only) or recipe.stem in (without or []):
            continue
        known = re.findall(r"^  (\w+): ", recipe.read_text(encoding="utf-8").partition("\nmodel:")[0], re.MULTILINE)
        params = {name: value for name, value in SMALL.items() if quick and name in known}
        strict = gate if recipe.stem == MISSED else None
        if params or strict is not None:
            (nightly / recipe.name).write_text(child(recipe.stem, params, strict), encoding="utf-8")
        else:
            shutil.copy(recipe, nightly / recipe.name)


def events(jobs: Path, name: str) -> list[dict[str, Any]]:
    """All that the jobs of a recipe told so far, the line that is being written left out."""
    found = []
    for path in jobs.glob(f"{name}-????????????/events.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def layers_done(jobs: Path, name: str, kind: str) -> int:
    told = events(jobs, name)
    steps = {event["step"] for event in told if event["event"] == "step_started" and event["kind"] == kind}
    return sum(event["event"] == "layer" and event["step"] in steps for event in told)


def kill_worker(process: subprocess.Popen[bytes], jobs: Path) -> None:
    """Wait for the step of the recipe that is to be killed, then kill the worker in the middle of it."""
    name = KILLED.replace("_", "-")
    while process.poll() is None:
        if layers_done(jobs, name, STEP) >= LAYER:
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
            for pid in children.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            return
        time.sleep(0.01)


def night(folder: Path, *, kill: bool, recipes: str = "nightly", jobs: str = "jobs", workers: int = 1) -> Night:
    """One run, as a workflow makes it."""
    command = [sys.executable, "-m", "runner", "apply", recipes, "--keep-going", "--jobs", jobs, "--junit", "junit.xml",
               "--jobs-at-once", str(workers)]  # fmt: skip
    names = sorted(path.stem.replace("_", "-") for path in (folder / "nightly").glob("*.yaml"))
    before = {name: len(events(folder / jobs, name)) for name in names}
    clock = time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"COLUMNS": "300"}
        )
        if kill:
            kill_worker(process, folder / jobs)
        code = process.wait()
    seconds = time.perf_counter() - clock
    told = {name: events(folder / jobs, name)[before[name] :] for name in names}

    def ids(event: str) -> dict[str, list[str]]:
        return {name: [e["id"] for e in told[name] if e["event"] == event] for name in names}

    resumed = {
        name: e["resumed_at"] for name in names for e in told[name] if e["event"] == "step_started" and e["resumed_at"]
    }
    rows = summary((folder / "log.txt").read_text(encoding="utf-8"))
    return Night(code, seconds, rows, ids("step_finished"), ids("step_cached"), resumed)


def summary(text: str) -> dict[str, list[str]]:
    """The rows of the table at the end, by their first cell; there must be one table."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if re.match(r" recipe +verdict ", line)]
    if len(heads) != 1:
        return {}
    rows = [re.split(r"  +", line.strip()) for line in lines[heads[0] + 1 :] if line.startswith(" ")]
    return {row[0]: row[1:] for row in rows}


def check_junit(file: Path, names: list[str], *, errors: int, failures: int) -> None:
    """The counts of the whole are the sums of the cases, and every job has its suite."""
    root = ElementTree.parse(file).getroot()
    suites = root.findall("testsuite")
    need([suite.get("name") for suite in suites] == names, f"JUnit has a suite for each of {names}")
    for tag, count in (("error", errors), ("failure", failures)):
        counted = sum(int(suite.get({"error": "errors", "failure": "failures"}[tag], "")) for suite in suites)
        need(len(root.findall(f".//testcase/{tag}")) == counted == count, f"JUnit tells of {count} {tag}")
    need(int(root.get("tests", "")) == len(root.findall(".//testcase")), "JUnit counts its cases")


def digests(jobs: Path, name: str) -> dict[str, str]:
    """Step id → digest of what it made."""
    found = {}
    for path in sorted(jobs.glob(f"{name}-????????????/steps/*/record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[record["id"]] = record["digest"]
    return found


def bad(folder: Path, names: list[str], missed: str, killed: str) -> Night:
    first = night(folder, kill=True)
    verdicts = {name: row[0] for name, row in first.rows.items()}
    expected = dict.fromkeys(names, "done") | {missed: "gate missed", killed: "machine cannot"}
    need(verdicts == expected, f"the one summary says {expected}; it says {verdicts}")
    need(first.exit_code == SIGKILLED, f"the exit code is {SIGKILLED}, the worst of all; it is {first.exit_code}")
    check_junit(folder / "junit.xml", names, errors=1, failures=1)
    accepted = sorted(path.stem for path in (folder / "jobs" / "accepted").iterdir())
    need(accepted == sorted({*names} - {missed, killed}), f"all others are accepted; accepted are {accepted}")
    return first


def next_night(folder: Path, names: list[str], missed: str, killed: str, first: Night) -> Night:
    second = night(folder, kill=False)
    need(second.exit_code == GATE_MISSED, f"the exit code is {GATE_MISSED}; it is {second.exit_code}")
    ran = [name for name in names if second.ran[name]]
    need(ran == [killed], f"only {killed} computes anything; computed was in {ran}")
    again = {*first.ran[killed]} & {*second.ran[killed]}
    need(not again, f"nothing that was finished is computed again; {again} was")
    need(second.resumed.get(killed, 0) >= LAYER, f"the killed step goes on at layer {LAYER} or later: {second.resumed}")
    check_junit(folder / "junit.xml", names, errors=0, failures=1)
    whole = night(folder, kill=False, recipes=f"nightly/{KILLED}.yaml", jobs="whole")
    need(whole.exit_code == 0, f"{KILLED} alone, uninterrupted, is done")
    expected, found = digests(folder / "whole", killed), digests(folder / "jobs", killed)
    need(len(found) > 0 and found == expected, f"the killed job has the bytes of a whole one: {found}, {expected}")
    return second


def mended(folder: Path, names: list[str], missed: str) -> Night:
    third = night(folder, kill=False)
    need(third.exit_code == 0, f"with the gate mended the exit code is 0; it is {third.exit_code}")
    ran = [name for name in names if third.ran[name]]
    need(not {*ran} - {missed}, f"only {missed} may have had steps left; computed was in {ran}")
    check_junit(folder / "junit.xml", names, errors=0, failures=0)
    return third


def timed(workers: list[int], only: list[str], without: list[str], quick: bool, folder: Path) -> None:
    """Print how long a night without faults takes with each number of workers, each in a jobs folder of its own."""
    write(folder, only, quick, None, without)
    print("| workers | seconds | processor seconds | jobs done | steps run | cached |")
    print("|---|---|---|---|---|---|")
    for count in workers:
        before = os.times()
        found = night(folder, kill=False, jobs=f"jobs-{count}", workers=count)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        done = sum(row[0] == "done" for row in found.rows.values())
        ran, cached = (sum(map(len, steps.values())) for steps in (found.ran, found.cached))
        print(
            f"| {count} | {found.seconds:.0f} | {cpu:.0f} | {done} of {len(found.rows)} | {ran} | {cached} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small windows and few steps of training")
    parser.add_argument("--only", metavar="NAMES", default="", help="some of the recipes, the two that fail among them")
    parser.add_argument("--without", metavar="NAMES", default="", help="with --workers: recipes to leave out")
    parser.add_argument("--workers", metavar="N", type=int, nargs="+", help="time nights without faults instead")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="work in this folder, and leave it")
    args = parser.parse_args()
    only = [name for name in args.only.split(",") if name]
    if args.workers:
        with tempfile.TemporaryDirectory() as scratch:
            without = [name for name in args.without.split(",") if name]
            timed(args.workers, only, without, args.quick, args.keep or Path(scratch))
        return
    need(not only or {MISSED, KILLED} <= {*only}, f"{MISSED} and {KILLED} are among the recipes")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, only, args.quick, LIMIT)
        names = [path.stem.replace("_", "-") for path in sorted((folder / "nightly").glob("*.yaml"))]
        missed, killed = MISSED.replace("_", "-"), KILLED.replace("_", "-")
        nights = {"one killed, one gate missed": bad(folder, names, missed, killed)}
        nights["the next night"] = next_night(folder, names, missed, killed, nights["one killed, one gate missed"])
        write(folder, only, args.quick, None)
        nights["the gate mended"] = mended(folder, names, missed)
    resumed = nights["the next night"].resumed[killed]
    print(f"| {len(names)} recipes | exit code | jobs done | steps run | cached | seconds |")
    print("|---|---|---|---|---|---|")
    for what, one in nights.items():
        done = sum(row[0] == "done" for row in one.rows.values())
        ran, cached = (sum(map(len, steps.values())) for steps in (one.ran, one.cached))
        print(f"| {what} | {one.exit_code} | {done} | {ran} | {cached} | {one.seconds:.0f} |")
    print(f"\n{killed} went on at layer {resumed} of its {STEP}, and ended with the bytes of an uninterrupted job.")


if __name__ == "__main__":
    main()
