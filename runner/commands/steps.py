"""`runner steps`: the kinds of steps, and everything about one of them."""

from __future__ import annotations

import argparse

from runner.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", nargs="?", help="a kind, `quantize.gptq`, or a family, `quantize`")


def run(args: argparse.Namespace) -> int:
    from runner import wording
    from runner.recipe.schema import load
    from runner.report import step_kinds as report
    from runner.report.console import console, show
    from runner.steps import kinds

    known = load.kinds()
    out = console()
    if args.kind in known:
        show(report.describe(args.kind, load.kind_schema(args.kind), kinds.find(args.kind), out.width), out)
        return 0
    asked = [kind for kind in known if args.kind is None or kind.startswith(f"{args.kind}.")]
    if not asked:
        meant = wording.did_you_mean(args.kind, [*known, *sorted({kind.split(".")[0] for kind in known})])
        raise UsageError(f"there is no kind of step `{args.kind}`{meant}", "`runner steps` lists every kind")
    show(report.listing([(kind, load.kind_schema(kind)) for kind in asked], out.width), out)
    return 0
