"""`runner report`: what a job did, from its records: on the terminal, as JSON, as a page, as JUnit XML."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from runner.commands import options
from runner.errors import StoreError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print what report.json holds")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, nargs="?", const=Path(),
        help="write the page to FILE; without FILE, write report.html and report.json in the job's folder anew",
    )  # fmt: skip
    options.add_junit(parser)


def run(args: argparse.Namespace) -> int:
    from runner.report import job_report, report_json, terminal
    from runner.report.ci import junit
    from runner.report.console import console, show
    from runner.report.html import publish

    found = job_report.read(*options.job_of(args))
    if args.junit is not None:
        _written(args.junit, lambda: junit.write(args.junit, [found]))
    if args.html is not None and args.html == Path():
        _written(found.path / publish.HTML, lambda: publish.write(found))
    elif args.html is not None:
        _written(args.html, lambda: publish.html(found, args.html))
    if args.json:
        print(json.dumps(report_json.of(found), indent=2, ensure_ascii=False))
    elif args.html is not None or args.junit is not None:
        for path in (found.path / publish.HTML if args.html == Path() else args.html, args.junit):
            if path is not None:
                print(f"wrote {path}")
    else:
        out = console()
        show(terminal.lines(found, out.width), out)
    return 0


def _written(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", "make its folder writable, or name another file"
        ) from error
