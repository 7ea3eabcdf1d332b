"""`runner show`: the resolved recipe, with where each of its values comes from."""

from __future__ import annotations

import argparse
import json

from runner.commands import options


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipe(parser)
    options.add_offline(parser)
    options.add_locked(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from runner.recipe import provenance
    from runner.report import show as report
    from runner.report.console import console, show

    options.go_offline(args)
    recipes = options.recipes_of(args.recipe, args)
    found = [(recipe, provenance.trace(recipe, args.sets)) for recipe in recipes]
    if args.json:
        documents = [report.document(recipe, values) for recipe, values in found]
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, ensure_ascii=False))
        return 0
    out = console()
    for number, (recipe, values) in enumerate(found):
        show([*([""] if number else []), *report.lines(recipe, values)], out)
    return 0
