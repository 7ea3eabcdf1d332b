"""`runner compare`: jobs side by side, and which of them no other dominates in size, quality and speed."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.api.jobs import Job
    from runner.job.listing import JobSummary


@dataclass(frozen=True)
class Options:
    names: tuple[str, ...]
    jobs: Path
    metric: str | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "jobs_named", metavar="JOB", nargs="*",
        help="a job (an id, the beginning of one, a folder), or the name or file of a recipe for all of its jobs; "
        "default: every job",
    )  # fmt: skip
    options.add_jobs(parser)
    parser.add_argument("--metric", metavar="NAME", help="the metric of quality, or STEP.NAME; default: perplexity")
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(tuple(args.jobs_named), options.jobs_folder(args), args.metric, args.json)


def run(opts: Options) -> int:
    from runner.api import comparison
    from runner.report import compare
    from runner.report.console import console, show

    table = comparison.compare(_chosen(opts), opts.metric)
    if opts.json:
        print(json.dumps(compare.document(table), indent=2, ensure_ascii=False))
        return 0
    out = console()
    show(compare.lines(table, out.width), out)
    return 0


def _chosen(opts: Options) -> list[Job]:
    """Return every requested job, each once."""
    from runner.api.jobs import Job
    from runner.job import listing

    every = listing.jobs(opts.jobs)
    chosen: list[Job] = []
    for name in opts.names:
        of_recipe = _of_recipe(name, every)
        chosen += [Job(job.id, opts.jobs) for job in of_recipe] or [Job(name, opts.jobs)]
    if not opts.names:
        chosen = [Job(job.id, opts.jobs) for job in every]
    if not chosen:
        raise UsageError(f"there are no jobs in {opts.jobs}", "`runner apply RECIPE` makes one")
    return list({job.path.resolve(): job for job in chosen}.values())


def _of_recipe(name: str, every: list[JobSummary]) -> list[JobSummary]:
    """Return the jobs of the recipe that `name` names, or of the recipe file at `name`."""
    from runner.recipe import load

    if Path(name).is_file() and Path(name).suffix in (".yaml", ".yml"):
        recipes = load.load_all(name)
        wanted = [(recipe.name, dict(recipe.matrix)) for recipe in recipes]
        found = [job for job in every if (job.recipe, dict(job.matrix)) in wanted]
        if not found:
            raise UsageError(f"{name} was not applied here", f"`runner apply {name}` applies it")
        return found
    return [job for job in every if job.recipe == name]
