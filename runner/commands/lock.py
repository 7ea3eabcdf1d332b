"""`runner lock`: pin the versions that the names in a recipe refer to, or upgrade those pins."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.commands import options
from runner.errors import RecipeError, RunnerError, UsageError

if TYPE_CHECKING:
    from runner.plan.lock import Entry
    from runner.recipe.origins.locate import Pins
    from runner.recipe.types import Recipe

EVERYTHING = ""


@dataclass(frozen=True)
class Options:
    recipe: str
    resolving: options.Resolving
    offline: bool
    upgrade: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe file")
    options.add_set(parser)
    options.add_jobs(parser)
    options.add_device(parser)
    options.add_offline(parser)
    options.add_trust(parser)
    parser.add_argument(
        "--upgrade", metavar="NAME", nargs="?", const=EVERYTHING,
        help="take what is there now: of everything, or of `model`, a model, a data entry, a parent or a package",
    )  # fmt: skip


def read_options(args: argparse.Namespace) -> Options:
    recipe, upgrade = args.recipe, args.upgrade
    if recipe is None and upgrade:  # `--upgrade RECIPE`, where RECIPE was taken for the name
        recipe, upgrade = upgrade, EVERYTHING
    if recipe is None:
        raise UsageError("`runner lock` needs a RECIPE", "`runner lock --help` shows how to use it")
    return Options(recipe, options.resolving(args), args.offline, upgrade)


def run(opts: Options) -> int:
    from runner.job.files import write_atomic
    from runner.plan import lock, lock_file
    from runner.recipe.origins import packs

    if opts.recipe.startswith(packs.SCHEME):
        message = f"the lock of a recipe is written next to it, and `{opts.recipe}` is in an installed package"
        raise UsageError(message, f"lock a file of your own that has `extends: {opts.recipe}`")
    options.go_offline(opts.offline)
    path = lock_file.find_lock(opts.recipe) or lock_file.lock_path(opts.recipe)
    old = _old(path, opts.upgrade)
    fresh, chosen = _resolved(opts, old)
    entries = {
        entry: old[entry] if entry in old and entry not in chosen else value
        for entry, value in lock.flat(fresh).items()
    }
    document = lock.nested(entries)
    text = lock_file.dump(document, opts.recipe)
    unchanged = path.is_file() and path.read_text(encoding="utf-8") == text
    if not unchanged:
        try:
            write_atomic(path, text)
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror}"
            raise UsageError(message, "copy the recipe to another folder") from None
    print(f"{path} is up to date" if unchanged else f"wrote {path}: {_counted(document)}")
    for change in lock.drift(lock.nested(old), document) if old else ():
        print(f"  {change.line()}")
    for entry in [entry for entry in old if entry not in entries]:
        print(f"  {lock.Drift(entry, 'no longer in the recipe').line()}")
    drifted = lock.drift(document, fresh)
    if drifted:
        print(f"still pinned, though they drifted; `runner lock {opts.recipe} --upgrade NAME` takes what is there now:")
        print("\n".join(f"  {one.line()}" for one in drifted))
    return 0


def _old(path: Path, upgrade: str | None) -> dict[Entry, Any]:
    """Return the entries of the existing lock; {} where there is none, or where an unreadable one will be replaced."""
    from runner.plan import lock, lock_file

    if not path.is_file():
        return {}
    try:
        return lock.flat(lock_file.read(path))
    except RunnerError as error:
        if upgrade != EVERYTHING:
            raise
        print(f"{error.message}; it is replaced", file=sys.stderr)
        return {}


def _resolved(opts: Options, old: Mapping[Entry, Any]) -> tuple[dict[str, Any], set[Entry]]:
    """Resolve the recipes again, with the pins that are not upgraded; return the lock, and the entries to upgrade."""
    from runner.api import folders
    from runner.job.store import Store
    from runner.model.architecture import remote_code
    from runner.plan import assignments, lock, lock_file, resolve

    remote_code.allow(opts.resolving.trust_remote_code)
    chosen = (
        set(old)
        if opts.upgrade == EVERYTHING
        else _named(opts, opts.upgrade, old)
        if opts.upgrade is not None
        else set()
    )
    pinned = _without(old, chosen)
    recipes = _recipes(opts, lock.parent_pins(pinned))
    cache = folders.digest_cache(opts.resolving.jobs)
    cache_file = cache if cache.parent.is_dir() else None  # locking writes no file but the lock
    plans = [
        resolve.resolve(recipe, cache_file=cache_file, device=opts.resolving.device, commits=lock.commits(pinned))
        for recipe in recipes
    ]
    store = Store(cache.parent)
    assigned = [assignments.known(plan, store) for plan in plans]
    return lock_file.lock_plans(plans, cache_file, hub_files=True, assigned=assigned), chosen


def _recipes(opts: Options, pins: Pins) -> list[Recipe]:
    """Return the recipes to lock: those of a matrix, or of a search some trials, in which every choice occurs."""
    from runner.recipe import load
    from runner.search import forecast

    found: list[Recipe] = []
    for recipe in load.load_all(opts.recipe, opts.resolving.sets, pins):
        found.append(recipe)
        if recipe.search is not None:
            trial = load.trials(opts.recipe, opts.resolving.sets, pins)
            for values in forecast.covering(recipe.search, recipe.params):
                with suppress(RecipeError):  # a trial that cannot be planned is refused, and no fault of the recipe
                    found.append(trial(values))
    return found


def _named(opts: Options, name: str, old: Mapping[Entry, Any]) -> set[Entry]:
    """Return the entries that `--upgrade NAME` selects."""
    from runner.plan import lock
    from runner.recipe import load

    try:
        aliases = _aliases(load.load_all(opts.recipe, opts.resolving.sets, lock.parent_pins(_without(old, set()))))
    except RecipeError:  # it may be what is upgraded; any other fault is reported when the recipe is read again
        aliases = {}
    try:
        return lock.selected(name, sorted(old), aliases)
    except LookupError as error:
        known = ", ".join(f"`{entry[1] or entry[0]}`" for entry in sorted(old))
        help = f"it has {known}" if known else f"`runner lock {opts.recipe}` writes it"
        raise UsageError(str(error), help) from None


def _without(old: Mapping[Entry, Any], chosen: set[Entry]) -> dict[str, Any]:
    from runner.plan import lock

    return lock.nested({entry: value for entry, value in old.items() if entry not in chosen})


def _aliases(recipes: Sequence[Recipe]) -> dict[str, Entry]:
    """Map the names that a recipe uses to lock entries: `model`, `step/teacher`, the names of data."""
    from runner.plan import lock
    from runner.recipe import step_graph

    found: dict[str, Entry] = {}
    for recipe in recipes:
        found.setdefault("model", ("models", lock.model_key(recipe.model)))
        for step in recipe.steps:
            for parameter, spec in step_graph.models_of(step).items():
                found.setdefault(f"{step.id}/{parameter}", ("models", lock.model_key(spec)))
        for name, spec_of in recipe.data.items():
            found.setdefault(name, ("data", lock.data_key(spec_of)))
    return found


def _counted(document: Mapping[str, Any]) -> str:
    names = {"models": "model", "data": "data entry", "parents": "parent", "packages": "package"}
    plural = {"data": "data entries"}
    counts = [(len(document[section]), section) for section in names if document[section]]
    return ", ".join(f"{n} {names[s] if n == 1 else plural.get(s, s)}" for n, s in counts)
