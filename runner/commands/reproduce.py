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
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import GateFailed, StepFailed, UsageError

if TYPE_CHECKING:
    from runner.api.jobs import Job
    from runner.job.records import Record

NOT_COMPARED = "not made"
_SHOWN = 6  # changes of the machine


@dataclass(frozen=True)
class Compared:
    """A step: its digest in the job and now, the changes of its key, and those of the machine."""

    id: str
    kind: str
    before: str
    now: str | None
    changes: tuple[str, ...]
    machine: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return self.before == self.now


@dataclass(frozen=True)
class Options:
    job: str
    jobs: Path
    keep: bool
    offline: bool
    json: bool
    command: str


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument("--keep", action="store_true", help="keep the results, and print where they are")
    options.add_offline(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.job, options.jobs_folder(args), args.keep, args.offline, args.json, args.command_line)


def run(opts: Options) -> int:
    from runner.api.jobs import Job

    options.go_offline(opts.offline)
    job = Job(opts.job, opts.jobs)
    before, id = job.records, job.id
    if not before:
        raise UsageError(f"job `{id}` has no results to compare with", f"`runner jobs show {id}` shows how it ended")
    folder = Path(tempfile.mkdtemp(prefix=".reproduce-", dir=job.jobs))
    try:
        code, steps = _apply_again(job, folder, before, opts)
    finally:
        if not opts.keep:
            shutil.rmtree(folder)
    differing = next((step for step in steps if not step.same), None)
    if opts.json:
        document = {
            "job": id, "same": differing is None, "first": differing.id if differing else None, "exit_code": code,
            "steps": [vars(step) for step in steps], "folder": str(folder) if opts.keep else None,
        }  # fmt: skip
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print(id, steps, differing)
        if opts.keep:
            print(f"what was made is in {folder}")
    if differing is None:
        return 0
    return code if code not in (0, GateFailed.exit_code) else StepFailed.exit_code


def _apply_again(job: Job, folder: Path, before: Mapping[str, Record], opts: Options) -> tuple[int, list[Compared]]:
    """Apply the job's recipe with its lock in `folder`; return the exit code and a comparison of every step."""
    from runner.api import recipes
    from runner.api.jobs import Job
    from runner.execute import application
    from runner.execute.settings import ApplySettings
    from runner.job import environment
    from runner.job.directory import read_json
    from runner.plan import lock_file, reasons, resolve
    from runner.progress.plain import Plain

    recipe = recipes.load_all(job.path / "recipe.yaml")[0]
    threads = read_json(job.path / "environment.json").get("threads")
    document = read_json(job.path / "plan.json")
    commits = lock_file.use(recipe.file).commits
    plan = resolve.with_model(resolve.resolve(recipe, device=str(document.get("device", "auto")), commits=commits))
    sinks = [] if opts.json else [Plain(sys.stdout)]
    settings = ApplySettings(opts.command, threads, gates_root=job.jobs)
    code = application.apply(plan, None, settings, jobs_root=folder, sinks=sinks)
    now = Job(plan.job_id, folder).records
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


def _print(id: str, steps: list[Compared], differing: Compared | None) -> None:
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
            print(f"changes since then that are in no key: {_some(differing.machine) or 'none that are recorded'}")


def _some(changes: tuple[str, ...]) -> str:
    more = len(changes) - _SHOWN
    return "; ".join(changes[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
