"""`runner plan`: every step with its state, the reason, and what it would take. Computes nothing."""

from __future__ import annotations

import argparse
import json

from runner.commands import options


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipe(parser)
    options.add_jobs(parser)
    options.add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from runner.report import preview as report
    from runner.report.console import console, show

    _, preview = options.preview_of(args)
    if args.json:
        print(json.dumps(report.document(preview), indent=2, ensure_ascii=False))
        return 0
    out = console()
    show(report.lines(preview, out.width), out)
    return 0
