"""`runner report`: what a job did, from its records."""

from __future__ import annotations

import argparse
import json

from runner.commands import options


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from runner.report import job, terminal
    from runner.report.console import console, show

    found = job.read(*options.job_of(args))
    if args.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return 0
    out = console()
    show(terminal.lines(found, out.width), out)
    return 0
