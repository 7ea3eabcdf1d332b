"""`runner validate`: every complaint about every recipe named, at once."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from runner.commands import options
from runner.errors import Diagnostic, RecipeError, RunnerError

if TYPE_CHECKING:
    from runner.recipe.types import Recipe


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="recipe files")
    options.add_set(parser)
    options.add_jobs(parser)
    parser.add_argument("--text-only", action="store_true", help="do not look at the model and the data it names")
    parser.add_argument("--json", action="store_true", help="print the complaints as JSON")


def run(args: argparse.Namespace) -> int:
    from runner.plan.machine import MachineRefusal

    complaints: list[Diagnostic] = []
    code = 0
    for number, file in enumerate(args.recipes):
        try:
            recipe = _check(file, args)
        except RunnerError as error:
            found = error.diagnostics if isinstance(error, RecipeError | MachineRefusal) else (_diagnostic(error),)
            complaints += found
            code = max(code, error.exit_code)
            if not args.json:
                print(("\n" if number else "") + "\n\n".join(d.render() for d in found))
        else:
            if not args.json:
                print(f"{file}: ok, {len(recipe.steps)} {'step' if len(recipe.steps) == 1 else 'steps'}")
    if args.json:
        print(json.dumps([as_json(d) for d in complaints], indent=2, ensure_ascii=False))
    return code


def _check(file: str, args: argparse.Namespace) -> Recipe:
    from runner.plan import resolve
    from runner.recipe import load

    recipe = load.load(file, args.sets)
    if not args.text_only:
        store = options.jobs_root(args) / "store"
        cache = store / "digests.json" if store.is_dir() else None  # checking leaves nothing behind
        resolve.resolve(recipe, cache_file=cache, device="cpu")
    return recipe


def _diagnostic(error: RunnerError) -> Diagnostic:
    return Diagnostic("R500", error.message, error.help)


def as_json(complaint: Diagnostic) -> dict[str, Any]:
    """One complaint; `file`, `line` and `column` are null where it has no place."""
    span = complaint.span
    return {
        "code": complaint.code, "severity": complaint.severity, "message": complaint.message, "help": complaint.help,
        "file": span.file if span else None, "line": span.line if span else None,
        "column": span.column if span else None, "length": span.length if span else None,
        "text": span.text if span else None,
    }  # fmt: skip
