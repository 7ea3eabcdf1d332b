"""`runner steps`: list the kinds of steps, or describe one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from runner.errors import UsageError


@dataclass(frozen=True)
class Options:
    kind: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", nargs="?", help="a kind, `quantize.gptq`, or a family, `quantize`")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.kind)


def run(opts: Options) -> int:
    from runner import wording
    from runner.recipe.schema import load
    from runner.report import step_kinds as report
    from runner.report.console import console, show
    from runner.steps import kinds

    known = load.kinds()
    out = console()
    if opts.kind in known:
        show(report.describe(opts.kind, load.kind_schema(opts.kind), kinds.find(opts.kind), out.width), out)
        return 0
    asked = [kind for kind in known if opts.kind is None or kind.startswith(f"{opts.kind}.")]
    if not asked:
        meant = wording.did_you_mean(str(opts.kind), [*known, *sorted({kind.split(".")[0] for kind in known})])
        raise UsageError(f"there is no kind of step `{opts.kind}`{meant}", "`runner steps` lists every kind")
    show(report.listing([(kind, load.kind_schema(kind)) for kind in asked], out.width), out)
    return 0
