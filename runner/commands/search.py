"""`runner search`: show the trials of a search, or write its best one as a recipe."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import StoreError, UsageError

if TYPE_CHECKING:
    from runner.search.archive import Archive
    from runner.search.trial import Trial


@dataclass(frozen=True)
class Options:
    """`action` is "show" or "best"; `page` is where --html writes, `recipe` where --as does."""

    action: str
    search: str | None
    jobs: Path
    json: bool
    page: Path | None
    recipe: Path | None
    trial: int | None


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    named = "a search: its id, the beginning of it, or the name of a recipe; default: the latest"
    shown = actions.add_parser("show", help="print the trials, the Pareto front and the best trial", allow_abbrev=False)
    best = actions.add_parser("best", help="print the best trial, or write it as a recipe", allow_abbrev=False)
    for action in (shown, best):
        action.add_argument("search", metavar="SEARCH", nargs="?", help=named)
        options.add_jobs(action)
        action.add_argument("--json", action="store_true", help="print JSON")
    shown.add_argument("--html", metavar="FILE", type=Path, help="write a page with the plot and the table to FILE")
    best.add_argument("--as", dest="recipe", metavar="FILE", type=Path, help="write a plain recipe, and its lock")
    best.add_argument("--trial", metavar="N", type=int, help="this trial instead of the best")


def read_options(args: argparse.Namespace) -> Options:
    given = vars(args)
    return Options(
        args.action, args.search, options.jobs_folder(args), args.json, given.get("html"), given.get("recipe"),
        given.get("trial"),
    )  # fmt: skip


def run(opts: Options) -> int:
    from runner.search import archive

    state = archive.load(opts.jobs, opts.search)
    return _show(state, opts) if opts.action == "show" else _best(state, opts)


def _show(state: Archive, opts: Options) -> int:
    from runner.job.files import write_atomic
    from runner.report import search as report
    from runner.report.console import console, show
    from runner.report.html import search_page

    if opts.page is not None:
        try:
            write_atomic(opts.page, search_page.html(state), durable=False)
        except OSError as error:
            message = f"{opts.page} cannot be written: {error.strerror}"
            raise StoreError(message, "make its folder writable, or name another file") from error
        print(f"wrote {opts.page}")
    elif opts.json:
        print(json.dumps(report.document(state), indent=2, ensure_ascii=False))
    else:
        out = console()
        show(report.lines(state, out.width), out)
    return 0


def _best(state: Archive, opts: Options) -> int:
    from dataclasses import asdict

    from runner.recipe.search_types import describe
    from runner.search import best

    trial = best.chosen(state, opts.trial)
    if opts.recipe is not None:
        if opts.recipe.suffix not in (".yaml", ".yml"):
            raise UsageError(f"`--as {opts.recipe}` does not end in .yaml or .yml", "name a recipe file")
        print("\n".join(f"wrote {path}" for path in best.write(opts.jobs, state, trial, opts.recipe)))
    elif opts.json:
        print(json.dumps({"schema": 1, "search": state.id, **asdict(trial)}, indent=2, ensure_ascii=False))
    else:
        print(f"trial {trial.number}: {describe(trial.values)}")
        print(f"job {trial.job}{_why(trial)}")
    return 0


def _why(trial: Trial) -> str:
    return f"; it {trial.state}: {trial.reason}" if trial.reason else ""
