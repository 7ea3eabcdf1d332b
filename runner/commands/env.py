"""`runner env`: list, build and remove the environments of foreign tools."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from runner.plan.environments import Environment
    from runner.recipe.types import Recipe


@dataclass(frozen=True)
class Options:
    """`what` is "list", "build" or "rm"; `names` are recipes to build for, or beginnings of digests to remove."""

    what: str
    names: tuple[str, ...]
    resolving: options.Resolving
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("list", "build", "rm"), help="what to do")
    parser.add_argument("names", metavar="NAME", nargs="*", help="build: recipes; rm: digests, or their beginnings")
    options.add_set(parser)
    options.add_jobs(parser)
    options.add_locked(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.what, tuple(args.names), options.resolving(args), args.json)


def run(opts: Options) -> int:
    if opts.what == "list":
        return _list(opts)
    if not opts.names:
        raise UsageError(f"`runner env {opts.what}` names nothing", "name recipes to build for, or digests to remove")
    return _build(opts) if opts.what == "build" else _remove(opts)


def _list(opts: Options) -> int:
    from runner.job import built_environments
    from runner.plan import environments
    from runner.progress import units
    from runner.report.console import console, show
    from runner.report.table import table

    found = built_environments.built()
    if opts.json:
        rows = [{"digest": b.digest, "requirements": list(b.requirements), "python": b.python, "made": b.made,
                 "size": b.size, "path": str(b.path)} for b in found]  # fmt: skip
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    if not found:
        print(f"there are no environments in {environments.folder()}")
        return 0
    lines = [[b.digest[:12], b.python, units.size(b.size), b.made, ", ".join(b.requirements)] for b in found]
    out = console()
    show(table([["digest", "python", "size", "made", "requirements"], *lines], out.width, "<<><<", head=True), out)
    return 0


def _build(opts: Options) -> int:
    from runner.commands import folders
    from runner.job import built_environments

    for task in folders.tasks(opts.names, opts.resolving):
        if task.recipe is None:
            raise task.error or UsageError(f"{task.file} holds no recipe")
        for id, environment in _environments(task.recipe, opts.resolving).items():
            built_environments.ensure(environment, print)
            print(f"{task.name}: `{id}` has {built_environments.path_of(environment)}")
    return 0


def _environments(recipe: Recipe, how: options.Resolving) -> dict[str, Environment]:
    """Return the environments of a recipe's steps by their ids.

    Nothing else of the recipe is resolved, since another machine may run it; a strict lock is checked as a whole.
    """
    from runner.commands import folders
    from runner.plan import lock_file, resolve

    if how.locked:
        steps = folders.planned(recipe, how).plan.steps
        return {step.id: step.environment for step in steps if step.environment is not None}
    found, complaints = resolve.step_environments(recipe, lock_file.use(recipe.file).commits)
    if complaints:
        raise RecipeError(complaints)
    return found


def _remove(opts: Options) -> int:
    from runner.job import built_environments

    known = [built.digest for built in built_environments.built()]
    for name in opts.names:
        matching = [digest for digest in known if digest.startswith(name)]
        if len(matching) != 1:
            what = f"`{name}` may be {len(matching)} environments" if matching else f"there is no environment `{name}`"
            raise UsageError(what, "`runner env list` shows them all")
        built_environments.remove(matching[0])
        print(f"removed {matching[0][:12]}")
    return 0
