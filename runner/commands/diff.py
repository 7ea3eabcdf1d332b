"""`runner diff`: the differences between two jobs, or two recipes."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.commands import options
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.report.diff import Side

DIFFERENT = 1


@dataclass(frozen=True)
class Options:
    a: str
    b: str
    jobs: Path
    only: tuple[str, ...]
    exit_code: bool
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(
            name, metavar=name.upper(), help="a job (an id, the beginning of one, a folder) or a recipe file"
        )
    options.add_jobs(parser)
    parser.add_argument(
        "--only", metavar="PART", action="append", default=[],
        help="only this part, any of: recipe, lock, metrics, digests, environment",
    )  # fmt: skip
    parser.add_argument("--exit-code", action="store_true", help="end with 1 where there is a difference, as git does")
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.a, args.b, options.jobs_folder(args), tuple(args.only), args.exit_code, args.json)


def run(opts: Options) -> int:
    from runner.report import diff
    from runner.report.console import console, show

    unknown = [name for name in opts.only if name not in diff.SECTIONS]
    if unknown:
        raise UsageError(f"`--only {unknown[0]}` names no part of a job", f"it is one of {', '.join(diff.SECTIONS)}")
    a, b = _side(opts.a, opts.jobs), _side(opts.b, opts.jobs)
    found = tuple(one for one in diff.differences(a, b) if not opts.only or one.section in opts.only)
    if opts.json:
        print(json.dumps(diff.document(a, b, found), indent=2, ensure_ascii=False))
    else:
        out = console()
        show(diff.lines(a, b, found, out.width), out)
    return DIFFERENT if found and opts.exit_code else 0


def _side(name: str, jobs: Path) -> Side:
    """Load one side of the comparison: a recipe file with its lock, else a job."""
    from runner.api.jobs import Job
    from runner.plan import lock_file
    from runner.recipe import load
    from runner.report.diff import Side

    file = Path(name)
    if file.is_file() and file.suffix in (".yaml", ".yml"):
        lock = lock_file.find_lock(name)
        return Side(name, load.load(name).document, lock_file.read(lock) if lock is not None else {})
    found = Job(name, jobs).report
    return Side(
        found.id, _yaml(found.path / "recipe.yaml"), _yaml(found.path / "recipe.lock"),
        {step.id: dict(step.metrics) for step in found.steps if step.metrics},
        {step.id: step.digest for step in found.steps if step.digest}, found.environment,
    )  # fmt: skip


def _yaml(path: Path) -> dict[str, Any]:
    """Read a YAML document that runner wrote; return {} where there is no file."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}", "apply the recipe again") from error
    return found if isinstance(found, dict) else {}
