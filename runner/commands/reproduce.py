"""`runner reproduce`: apply a job again in an empty store, and compare the digests step by step."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.commands import options
from runner.errors import GateFailed, StepFailed, UsageError

NOT_COMPARED = "not made"
_SHOWN = 6  # changes of the machine


@dataclass(frozen=True)
class Compared:
    """A step: the digests of then and of now, how its key changed, if it did, and how the machine did."""

    id: str
    kind: str
    before: str
    now: str | None
    changes: tuple[str, ...]
    machine: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return self.before == self.now


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument("--keep", action="store_true", help="keep what is made, and say where it is")
    options.add_offline(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    options.go_offline(args)
    args.sets = []
    root, id = options.job_of(args)
    before = _records(root, id)
    if not before:
        raise UsageError(f"job `{id}` has no results to compare with", f"`runner jobs show {id}` tells how it ended")
    folder = Path(tempfile.mkdtemp(prefix=".reproduce-", dir=root))
    try:
        code, steps = _again(root, id, folder, before, args)
    finally:
        if not args.keep:
            shutil.rmtree(folder)
    differing = next((step for step in steps if not step.same), None)
    if args.json:
        document = {
            "job": id, "same": differing is None, "first": differing.id if differing else None, "exit_code": code,
            "steps": [vars(step) for step in steps], "folder": str(folder) if args.keep else None,
        }  # fmt: skip
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _say(id, steps, differing)
        if args.keep:
            print(f"what was made is in {folder}")
    if differing is None:
        return 0
    return code if code not in (0, GateFailed.exit_code) else StepFailed.exit_code


def _again(
    root: Path, id: str, folder: Path, before: Mapping[str, Any], args: argparse.Namespace
) -> tuple[int, list[Compared]]:
    """Apply the job's own recipe, which its own lock pins, in `folder`; the exit code and every step compared."""
    from runner.execute import local
    from runner.job import environment
    from runner.job.directory import read_json
    from runner.plan import reasons, resolve
    from runner.progress.plain import Plain

    recipe = options.recipes_of(str(root / id / "recipe.yaml"), args)[0]
    threads = read_json(root / id / "environment.json").get("threads")
    document = read_json(root / id / "plan.json")
    commits = options.locking_of(recipe.file, args).commits
    plan = resolve.with_model(resolve.resolve(recipe, device=str(document.get("device", "auto")), commits=commits))
    sinks = [] if args.json else [Plain(sys.stdout)]
    code = local.apply(
        plan, None, jobs_root=folder, sinks=sinks, device=plan.device, threads=threads,
        command=args.command_line, gates_root=root,
    )  # fmt: skip
    now = _records(folder, plan.job_id)
    inputs = {step["id"]: step["key_inputs"] for step in document.get("steps", [])}
    compared = []
    for step in plan.steps:
        if step.id in before:
            made = now.get(step.id)
            digest: str | None = None
            machine: tuple[str, ...] = ()
            if made is not None:
                digest = made.digest
                machine = tuple(environment.changes(before[step.id].environment, made.environment))
            changes = tuple(reasons.changes(step, inputs[step.id], {}))
            compared.append(Compared(step.id, step.kind, before[step.id].digest, digest, changes, machine))
    return code, compared


def _say(id: str, steps: list[Compared], differing: Compared | None) -> None:
    print()
    for step in steps:
        why = f" ({', '.join(step.changes)})" if step.changes else ""
        if step.same:
            print(f"✓ {step.id}: {step.before}{why}")
        else:
            print(f"✗ {step.id}: {step.before} then, {step.now or NOT_COMPARED} now{why}")
    if differing is None:
        print(f"{id}: all {len(steps)} steps gave the same bytes")
    else:
        print(f"{id}: `{differing.id}` is the first step that differs")
        if differing.now is not None:
            print(f"changed since, and in no key: {_some(differing.machine) or 'nothing that is recorded'}")


def _some(changes: tuple[str, ...]) -> str:
    more = len(changes) - _SHOWN
    return "; ".join(changes[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _records(root: Path, id: str) -> dict[str, Any]:
    """Step id → record, of the steps of a job that have one in its folder."""
    from runner.job import records
    from runner.job.directory import read_json

    found = {}
    for step in read_json(root / id / "plan.json").get("steps", []):
        path = root / id / "steps" / step["folder"] / "record.json"
        try:
            found[step["id"]] = records.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return found
