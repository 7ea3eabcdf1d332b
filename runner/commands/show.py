"""`runner show`: the resolved recipe, with where each of its values comes from."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from runner.commands import options


@dataclass(frozen=True)
class Options:
    recipe: str
    resolving: options.Resolving
    offline: bool
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipe(parser)
    options.add_offline(parser)
    options.add_locked(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.recipe, options.resolving(args), args.offline, args.json)


def run(opts: Options) -> int:
    from runner.api import recipes
    from runner.recipe import provenance
    from runner.report import show as report
    from runner.report.console import console, show

    options.go_offline(opts.offline)
    how = opts.resolving
    loaded = recipes.load_all(opts.recipe, sets=how.sets, locked=how.locked)
    found = [(recipe, provenance.trace(recipe, how.sets)) for recipe in loaded]
    if opts.json:
        documents = [report.document(recipe, values) for recipe, values in found]
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, ensure_ascii=False))
        return 0
    out = console()
    for number, (recipe, values) in enumerate(found):
        show([*([""] if number else []), *report.lines(recipe, values)], out)
    return 0
