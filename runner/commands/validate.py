"""`runner validate`: check recipes and print all complaints at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.commands import folders, options
from runner.errors import Diagnostic, RecipeError, RunnerError

if TYPE_CHECKING:
    from runner.api.recipes import Validation
    from runner.recipe.types import Recipe


@dataclass(frozen=True)
class Options:
    recipes: tuple[str, ...]
    resolving: options.Resolving
    text_only: bool
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipes(parser)
    options.add_jobs(parser)
    options.add_locked(parser)
    options.add_trust(parser)
    parser.add_argument("--text-only", action="store_true", help="do not look at the model and the data it names")
    parser.add_argument("--json", action="store_true", help="print the complaints as JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(tuple(args.recipes), options.resolving(args), args.text_only, args.json)


def run(opts: Options) -> int:
    from runner.plan.machine import MachineRefusal

    complaints: list[Diagnostic] = []
    code = 0
    for number, file in enumerate(folders.files(opts.recipes)):
        try:
            checked = _check(file, opts)
        except RunnerError as error:
            found = error.diagnostics if isinstance(error, RecipeError | MachineRefusal) else (_diagnostic(error),)
            complaints += found
            code = max(code, error.exit_code)
            _annotate(error)
            if not opts.json:
                print(("\n" if number else "") + "\n\n".join(d.render() for d in found))
        else:
            if not opts.json:
                print(f"{file}: ok, {_counted(checked.recipes)}")
                print("".join(f"\n{d.render()}\n" for d in checked.warnings), end="")
            complaints += checked.warnings
    if opts.json:
        print(json.dumps([as_json(d) for d in complaints], indent=2, ensure_ascii=False))
    return code


def _check(file: str, opts: Options) -> Validation:
    from runner.api import recipes

    how = opts.resolving
    return recipes.validate(
        file, sets=how.sets, jobs=how.jobs, locked=how.locked, trust_remote_code=how.trust_remote_code,
        text_only=opts.text_only,
    )  # fmt: skip


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
    """Return a complaint as JSON; `file`, `line` and `column` are null where it has no position."""
    span = complaint.span
    return {
        "code": complaint.code, "severity": complaint.severity, "message": complaint.message, "help": complaint.help,
        "file": span.file if span else None, "line": span.line if span else None,
        "column": span.column if span else None, "length": span.length if span else None,
        "text": span.text if span else None,
    }  # fmt: skip
