"""`runner report`: what a job did, from its records, on the terminal or as JSON, HTML or JUnit XML."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner.commands import options
from runner.errors import StoreError


@dataclass(frozen=True)
class Options:
    """`page` is where --html writes; an empty path means the job's folder."""

    job: str
    jobs: Path
    json: bool
    page: Path | None
    junit: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print what report.json holds")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, nargs="?", const=Path(),
        help="write the page to FILE; without FILE, write report.html and report.json in the job's folder again",
    )  # fmt: skip
    options.add_junit(parser)


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.job, options.jobs_folder(args), args.json, args.html, args.junit)


def run(opts: Options) -> int:
    from runner.api.jobs import Job
    from runner.report import report_json, terminal
    from runner.report.ci import junit
    from runner.report.console import console, show
    from runner.report.html import publish

    job = Job(opts.job, opts.jobs)
    found, junit_file = job.report, opts.junit
    page = job.path / publish.HTML if opts.page == Path() else opts.page
    if junit_file is not None:
        _written(junit_file, lambda: junit.write(junit_file, [found]))
    if page is not None:
        _written(page, lambda: job.write_report(None if opts.page == Path() else page))
    if opts.json:
        print(json.dumps(report_json.document(found), indent=2, ensure_ascii=False))
    elif page is not None or junit_file is not None:
        for path in (page, junit_file):
            if path is not None:
                print(f"wrote {path}")
    else:
        out = console()
        show(terminal.lines(found, out.width), out)
    return 0


def _written(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", "make its folder writable, or name another file"
        ) from error
