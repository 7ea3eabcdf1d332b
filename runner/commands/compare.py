"""`runner compare`: jobs beside each other, and which of them no other beats in size, quality and speed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.job.listing import JobSummary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "jobs_named", metavar="JOB", nargs="*",
        help="a job (an id, the beginning of one, a folder), or the name or file of a recipe for all of its jobs; "
        "default: every job",
    )  # fmt: skip
    options.add_jobs(parser)
    parser.add_argument("--metric", metavar="NAME", help="the metric of quality, or STEP.NAME; default: perplexity")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import yaml

    from runner.report import compare
    from runner.report import job_report as job
    from runner.report.console import console, show

    chosen = _chosen(args)
    found = [job.read(root, id) for root, id in chosen]
    known = compare.metrics(found)
    if args.metric is not None and args.metric.rpartition(".")[2] not in known:
        listed = ", ".join(known) or "no metric"
        raise UsageError(f"none of these jobs measured `{args.metric}`", f"they measured {listed}")
    table = compare.compare([(one, yaml.safe_load(one.text) or {}) for one in found], args.metric)
    if args.json:
        print(json.dumps(compare.document(table), indent=2, ensure_ascii=False))
        return 0
    out = console()
    show(compare.lines(table, out.width), out)
    return 0


def _chosen(args: argparse.Namespace) -> list[tuple[Path, str]]:
    """Jobs folder and id of every job that is asked for, each once."""
    from runner.job import listing

    root = options.jobs_root(args)
    every = listing.jobs(root)
    chosen: list[tuple[Path, str]] = []
    for name in args.jobs_named:
        several = _of_recipe(name, every)
        chosen += [(root, job.id) for job in several] or [options.job_of(argparse.Namespace(job=name, jobs=args.jobs))]
    if not args.jobs_named:
        chosen = [(root, job.id) for job in every]
    if not chosen:
        raise UsageError(f"there are no jobs in {root}", "`runner apply RECIPE` makes one")
    return list(dict.fromkeys(chosen))


def _of_recipe(name: str, every: list[JobSummary]) -> list[JobSummary]:
    """The jobs of the recipe of that name, or in the file of that name."""
    from runner.recipe import load

    if Path(name).is_file() and Path(name).suffix in (".yaml", ".yml"):
        recipes = load.load_all(name)
        wanted = [(recipe.name, dict(recipe.matrix)) for recipe in recipes]
        found = [job for job in every if (job.recipe, dict(job.matrix)) in wanted]
        if not found:
            raise UsageError(f"{name} was not applied here", f"`runner apply {name}` applies it")
        return found
    return [job for job in every if job.recipe == name]
