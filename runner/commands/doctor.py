"""`runner doctor`: what this machine and this installation can do, and the remedy for what they cannot."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.commands import options
from runner.errors import MachineError


@dataclass(frozen=True)
class Options:
    jobs: Path
    json: bool
    executor: options.ExecutorOptions


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_jobs(parser)
    options.add_executor(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(options.jobs_folder(args), args.json, options.executor(args))


def run(opts: Options) -> int:
    from rich.text import Text

    from runner.report import doctor
    from runner.report.console import console, show
    from runner.report.table import Cell, table

    findings = doctor.examine(opts.jobs)
    if opts.executor.name == "ray":
        from runner.report import cluster

        findings += cluster.examine(opts.executor.address, opts.jobs.absolute() / "store")
    code = MachineError.exit_code if any(f.level == "fail" for f in findings) else 0
    if opts.json:
        print(json.dumps([asdict(f) for f in findings], indent=2, ensure_ascii=False))
        return code
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    rows: list[list[Cell]] = []
    for finding in findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\nremedy: {finding.remedy}", "dim" if finding.level == "ok" else "")
        rows.append([Text(finding.level, styles[finding.level]), finding.name, text])
    out = console()
    show(table(rows, out.width, indent=0), out)
    return code
