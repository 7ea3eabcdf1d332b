"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.plan.types import Plan, Preview


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="sets", metavar="NAME=VALUE", action="append", default=[], help="change a param of the recipe"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", metavar="DIR", type=Path, default=None, help="jobs folder; default $RUNNER_JOBS or ./jobs"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where steps compute")


def jobs_root(args: argparse.Namespace) -> Path:
    """The jobs folder; it need not exist."""
    return Path(args.jobs if args.jobs is not None else os.environ.get("RUNNER_JOBS") or "jobs")


def job_of(args: argparse.Namespace) -> tuple[Path, str]:
    """The jobs folder and the id of the job that JOB names: an id, the beginning of one, or the job's folder."""
    from runner.job import listing

    folder = Path(args.job)
    if (folder / "plan.json").is_file():
        folder = folder.resolve()
        return folder.parent, folder.name
    root = jobs_root(args)
    return root, listing.find(root, args.job)


def preview_of(args: argparse.Namespace) -> tuple[Plan, Preview]:
    """Load, resolve and preview the recipe that the arguments name."""
    from runner.job.store import Store
    from runner.plan import preview, resolve
    from runner.recipe import load

    root = jobs_root(args)
    if root.exists() and not root.is_dir():
        raise UsageError(f"the jobs folder {root} is a file", "name another with --jobs")
    recipe = load.load(args.recipe, args.sets)
    plan = resolve.resolve(recipe, cache_file=root / "store" / "digests.json", device=args.device)
    return plan, preview.preview(plan, Store(root / "store"), previous(root, recipe.name))


def previous(root: Path, recipe: str) -> dict[str, dict[str, Any]]:
    """Step id → key inputs of the job of that recipe name that was applied last; they say why a step runs again."""
    from runner.job.directory import read_json

    latest, found = "", {}
    for path in sorted(root.glob("*/plan.json")):
        plan = read_json(path)
        started = str(read_json(path.with_name("job.json")).get("started", ""))
        if plan.get("recipe") == recipe and started >= latest:
            latest, found = started, {step["id"]: step["key_inputs"] for step in plan.get("steps", [])}
    return found
