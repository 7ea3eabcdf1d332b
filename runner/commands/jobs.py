"""`runner jobs`: the jobs of a jobs folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.commands import options
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.api.jobs import Job
    from runner.job.listing import JobSummary


@dataclass(frozen=True)
class Options:
    action: str
    job: str | None
    jobs: Path
    all: bool
    keep_store: bool
    key: str | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=("list", "show", "rm", "accept", "sign"), nargs="?", default="list", help="default: list"
    )
    parser.add_argument("job", metavar="JOB", nargs="?", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument("--all", action="store_true", help="with rm: every job of the folder")
    parser.add_argument("--keep-store", action="store_true", help="with rm: keep the results of its steps for reuse")
    parser.add_argument("--key", metavar="FILE", help="with sign: the ssh key to sign provenance.json with")
    parser.add_argument("--json", action="store_true", help="print JSON (list, show)")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.action, args.job, options.jobs_folder(args), args.all, args.keep_store, args.key, args.json)


def run(opts: Options) -> int:
    if opts.action == "list":
        if opts.job is not None:
            raise UsageError("`runner jobs list` takes no JOB", f"`runner jobs show {opts.job}` shows one")
        return _list(opts)
    if opts.action == "rm":
        return _remove(opts)
    if opts.job is None:
        raise UsageError(f"`runner jobs {opts.action}` needs a JOB", "`runner jobs list` shows them all")
    from runner.api.jobs import Job

    job = Job(opts.job, opts.jobs)
    if opts.action == "sign":
        return _sign(job, opts.key)
    return _accept(job) if opts.action == "accept" else _show(job, opts)


def _sign(job: Job, key: str | None) -> int:
    from runner.job import signing

    if key is None:
        raise UsageError("`runner jobs sign` needs a key", "write `--key ~/.ssh/id_ed25519`")
    print(f"wrote {signing.sign(job.path, key)}")
    return 0


def _accept(job: Job) -> int:
    from runner.commands.folders import named
    from runner.job import accepted

    found = accepted.accept(job.jobs, job.id)
    print(f"{found.job} is the accepted job of {named(found.recipe, found.matrix)}")
    return 0


def _list(opts: Options) -> int:
    from rich.text import Text

    from runner.commands.folders import values
    from runner.job import accepted, listing
    from runner.progress import units
    from runner.report.console import console, show
    from runner.report.table import Cell, table
    from runner.report.terminal import STATUS_STYLES

    root = opts.jobs
    found = listing.jobs(root)
    good = {entry.job for entry in accepted.every(root)}
    if opts.json:
        print(json.dumps([as_json(job) | {"accepted": job.id in good} for job in found], indent=2, ensure_ascii=False))
        return 0
    if not found:
        print(f"no jobs in {root}")
        return 0
    rows: list[list[Cell]] = [["job", "status", "steps", "size", "started (UTC)", "took", "combination"]]
    rows += [
        [
            Text(job.id, "bold"),
            Text(f"{job.status}, accepted" if job.id in good else job.status, STATUS_STYLES.get(job.status, "")),
            f"{job.done}/{job.steps}",
            units.size(job.size),
            (job.started or "").replace("T", " ").removesuffix("Z"),
            units.duration(job.seconds) if job.seconds is not None else "",
            values(job.matrix),
        ]
        for job in found
    ]  # fmt: skip
    if not any(job.matrix for job in found):
        rows = [row[:-1] for row in rows]
    out = console()
    show(table(rows, out.width, "<<>>", indent=0, head=True), out)
    return 0


def _show(found: Job, opts: Options) -> int:
    from runner.commands.folders import named
    from runner.progress import units
    from runner.report.console import console, show
    from runner.report.table import table

    job = found.summary
    if opts.json:
        print(json.dumps(as_json(job), indent=2, ensure_ascii=False))
        return 0
    out = console()
    rows = [
        ["job", job.id], ["recipe", named(job.recipe, job.matrix)], ["status", job.status], ["folder", str(job.path)],
        ["output", str(found.output or "none yet")], ["started", job.started or "never"],
        ["finished", job.finished or "not yet"],
        ["took", units.duration(job.seconds) if job.seconds is not None else "?"],
        ["steps", f"{job.done} of {job.steps} in the store"], ["size", units.size(job.size)],
    ]  # fmt: skip
    if job.holder is not None:
        rows.append(["applied by", str(job.holder)])
    rows += [["batch job", f"{each.number}: step {each.step}, log {each.log}"] for each in job.batch_jobs]
    show(table(rows, out.width, indent=0), out)
    show(["", f"`runner report {job.id}` shows what its steps did"], out)
    return 0


def _remove(opts: Options) -> int:
    from runner.api import jobs
    from runner.progress import units

    if opts.all == (opts.job is not None):
        raise UsageError("`runner jobs rm` needs either a JOB or --all", "`runner jobs list` shows them all")
    found = [jobs.Job(opts.job, opts.jobs)] if opts.job is not None else jobs.jobs(opts.jobs)
    for job in found:
        freed = job.remove(keep_store=opts.keep_store)
        print(f"removed {job.id}, {units.size(freed)} freed")
    if not found:
        print(f"no jobs in {opts.jobs}")
    return 0


def as_json(job: JobSummary) -> dict[str, Any]:
    return asdict(job) | {"path": str(job.path), "holder": str(job.holder) if job.holder else None}
