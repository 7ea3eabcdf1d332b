"""`runner validate`: every complaint about every recipe named, at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.commands import folders, options
from runner.errors import Diagnostic, RecipeError, RunnerError

if TYPE_CHECKING:
    from runner.recipe.types import Recipe


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipes(parser)
    options.add_jobs(parser)
    options.add_locked(parser)
    options.add_trust(parser)
    parser.add_argument("--text-only", action="store_true", help="do not look at the model and the data it names")
    parser.add_argument("--json", action="store_true", help="print the complaints as JSON")


def run(args: argparse.Namespace) -> int:
    from runner.plan.machine import MachineRefusal

    complaints: list[Diagnostic] = []
    code = 0
    for number, file in enumerate(folders.files(args.recipes)):
        try:
            recipes, drifted = _check(file, args)
        except RunnerError as error:
            found = error.diagnostics if isinstance(error, RecipeError | MachineRefusal) else (_diagnostic(error),)
            complaints += found
            code = max(code, error.exit_code)
            _annotate(error)
            if not args.json:
                print(("\n" if number else "") + "\n\n".join(d.render() for d in found))
        else:
            if not args.json:
                print(f"{file}: ok, {_counted(recipes)}")
                print("".join(f"warning[{d.code}]: {d.message}\n" for d in drifted), end="")
            complaints += drifted
    if args.json:
        print(json.dumps([as_json(d) for d in complaints], indent=2, ensure_ascii=False))
    return code


def _check(file: str, args: argparse.Namespace) -> tuple[tuple[Recipe, ...], list[Diagnostic]]:
    """The recipes of a file, and a warning for everything that drifted from its lock."""
    from runner.plan import resolve

    drifted: tuple[str, ...] = ()
    recipes = options.recipes_of(file, args)
    if not args.text_only:
        store = options.jobs_root(args) / "store"
        cache = store / "digests.json" if store.is_dir() else None  # checking leaves nothing behind
        locking = options.locking_of(file, args)
        plans = [resolve.resolve(recipe, cache_file=cache, device="cpu", commits=locking.commits) for recipe in recipes]
        drifted = locking.check(plans, cache)
    return recipes, [Diagnostic("R451", text, severity="warning") for text in drifted]


def _counted(recipes: Sequence[Recipe]) -> str:
    counts = sorted({len(recipe.steps) for recipe in recipes})
    steps = f"{counts[0]} {'step' if counts == [1] else 'steps'}"
    if len(recipes) == 1:
        return steps
    return f"{len(recipes)} jobs of {steps if len(counts) == 1 else f'{counts[0]} to {counts[-1]} steps'}"


def _annotate(error: RunnerError) -> None:
    from runner.report.ci import github

    github.complain(error, sys.stderr)


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
