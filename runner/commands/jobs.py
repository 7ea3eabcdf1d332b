"""`runner jobs`: the jobs of a jobs folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from runner.commands import options
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.job.listing import JobSummary


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


def run(args: argparse.Namespace) -> int:
    if args.action == "list":
        if args.job is not None:
            raise UsageError("`runner jobs list` takes no JOB", f"`runner jobs show {args.job}` shows one")
        return _list(args)
    if args.action == "rm":
        return _remove(args)
    if args.job is None:
        raise UsageError(f"`runner jobs {args.action}` needs a JOB", "`runner jobs list` shows them all")
    if args.action == "sign":
        return _sign(args)
    return _accept(args) if args.action == "accept" else _show(args)


def _sign(args: argparse.Namespace) -> int:
    from runner.job import signing

    if args.key is None:
        raise UsageError("`runner jobs sign` needs a key", "write `--key ~/.ssh/id_ed25519`")
    root, id = options.job_of(args)
    print(f"wrote {signing.sign(root / id, args.key)}")
    return 0


def _accept(args: argparse.Namespace) -> int:
    from runner.commands.folders import named
    from runner.job import accepted

    found = accepted.accept(*options.job_of(args))
    print(f"{found.job} is the accepted job of {named(found.recipe, found.matrix)}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from rich.text import Text

    from runner.commands.folders import values
    from runner.job import accepted, listing
    from runner.progress import units
    from runner.report.console import console, show
    from runner.report.table import Cell, table
    from runner.report.terminal import STATUS_STYLES

    root = options.jobs_root(args)
    found = listing.jobs(root)
    good = {entry.job for entry in accepted.every(root)}
    if args.json:
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


def _show(args: argparse.Namespace) -> int:
    from runner.commands.folders import named
    from runner.job import listing
    from runner.progress import units
    from runner.report.console import console, show
    from runner.report.table import table

    job = listing.load(*options.job_of(args))
    if args.json:
        print(json.dumps(as_json(job), indent=2, ensure_ascii=False))
        return 0
    out = console()
    output = job.path / "output"
    rows = [
        ["job", job.id], ["recipe", named(job.recipe, job.matrix)], ["status", job.status], ["folder", str(job.path)],
        ["output", str(output) if output.is_dir() else "none yet"], ["started", job.started or "never"],
        ["finished", job.finished or "not yet"],
        ["took", units.duration(job.seconds) if job.seconds is not None else "?"],
        ["steps", f"{job.done} of {job.steps} in the store"], ["size", units.size(job.size)],
    ]  # fmt: skip
    if job.holder is not None:
        rows.append(["applied by", str(job.holder)])
    show(table(rows, out.width, indent=0), out)
    show(["", f"`runner report {job.id}` tells what its steps did"], out)
    return 0


def _remove(args: argparse.Namespace) -> int:
    from runner.job import listing
    from runner.progress import units

    if (args.job is None) != args.all:
        raise UsageError("`runner jobs rm` needs either a JOB or --all", "`runner jobs list` shows them all")
    if args.all:
        root = options.jobs_root(args)
        ids = [job.id for job in listing.jobs(root)]
    else:
        root, id = options.job_of(args)
        ids = [id]
    for id in ids:
        freed = listing.remove(root, id, entries=not args.keep_store)
        print(f"removed {id}, {units.size(freed)} freed")
    if not ids:
        print(f"no jobs in {root}")
    return 0


def as_json(job: JobSummary) -> dict[str, Any]:
    return asdict(job) | {"path": str(job.path), "holder": str(job.holder) if job.holder else None}
