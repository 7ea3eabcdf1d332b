"""`runner apply`: say what will happen and what it costs, do it while showing how far it is, say what came out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import Interrupted

if TYPE_CHECKING:
    from rich.text import Text

    from runner.plan.types import Plan
    from runner.progress.board import Board
    from runner.progress.events import Sink


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipe(parser)
    options.add_jobs(parser)
    options.add_device(parser)
    parser.add_argument("--threads", metavar="N", type=_threads, help="threads to compute with; default: every core")
    parser.add_argument(
        "--progress", choices=("auto", "live", "plain", "jsonl", "none"), default="auto",
        help="how to show progress; auto: live on a terminal, else plain lines; jsonl: events, one JSON object a line",
    )  # fmt: skip
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="do not wait for another apply of the same plan"
    )


def run(args: argparse.Namespace) -> int:
    from runner.execute import local
    from runner.plan import resolve
    from runner.progress.board import Board
    from runner.report import preview as report
    from runner.report.console import console, is_terminal, show

    how = args.progress
    if how == "auto":
        how = "live" if is_terminal(sys.stdout) else "plain"
    plan, preview = options.preview_of(args)
    out = console()
    talks = how != "jsonl"
    if talks:
        show([*report.short(preview, out.width), ""], out)
        sys.stdout.flush()
    plan = resolve.with_model(plan)
    board = Board()
    sinks: list[Sink] = [board]
    if (shown := _sink(how)) is not None:
        sinks.append(shown)
    try:
        code = local.apply(
            plan, preview, jobs_root=options.jobs_root(args), sinks=sinks, device=plan.device, threads=args.threads,
            command=args.command_line, wait=args.wait,
        )  # fmt: skip
    finally:
        for sink in sinks:
            sink.close()
    if talks:
        show(_summary(board, plan, how, out.width), out)
    return code


def _sink(how: str) -> Sink | None:
    """The sink that shows events on stdout; the live one alone needs rich."""
    if how == "live":
        from runner.progress.live import Live

        return Live(sys.stdout)
    if how == "plain":
        from runner.progress.plain import Plain

        return Plain(sys.stdout)
    if how == "jsonl":
        from runner.progress.jsonl import JsonLines

        return JsonLines(sys.stdout)
    return None


def _summary(board: Board, plan: Plan, how: str, width: int) -> list[Text | str]:
    """What every step gave, which the live view has left standing already, and where the output is."""
    from runner.progress import frame
    from runner.report import job, terminal

    lines: list[Text | str] = []
    if how != "live":
        lines += [*([""] if how == "plain" else []), *frame.final(board, width)]
    if board.exit_code == Interrupted.exit_code:
        return [*lines, "", "interrupted at a safe point; go on with:", f"  {board.resume}"]
    if board.output is not None and board.exit_code in (0, 3):
        output = Path(board.output)
        lines += ["", *terminal.ending(output, plan.model.facts.nbytes, job.weights(output))]
    return lines


def _threads(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)
