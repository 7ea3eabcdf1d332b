"""`runner apply`: say what will happen and what it costs, do it while showing how far it is, say what came out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import Interrupted, RunnerError

if TYPE_CHECKING:
    from rich.text import Text

    from runner.commands.folders import Task
    from runner.commands.several import Applied
    from runner.execute.stopping import Stopping
    from runner.plan.types import Plan
    from runner.progress.board import Board
    from runner.progress.events import Sink
    from runner.recipe.types import Recipe


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipes(parser)
    options.add_jobs(parser)
    options.add_device(parser)
    parser.add_argument("--threads", metavar="N", type=_threads, help="threads to compute with; default: every core")
    parser.add_argument(
        "--progress", choices=("auto", "live", "plain", "jsonl", "none"), default="auto",
        help="how to show progress; auto: live on a terminal, else plain lines; jsonl: events, one JSON object a line",
    )  # fmt: skip
    parser.add_argument(
        "--keep-going", action=argparse.BooleanOptionalAction, default=None,
        help="go on with the next job after one that failed; the default for a folder and for several recipes",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", metavar="TIME", type=options.duration,
        help="stop each job at the first safe point after this time (30m, 2h), with exit code 75; it can go on later",
    )  # fmt: skip
    options.add_offline(parser)
    options.add_remote(parser)
    options.add_locked(parser)
    options.add_trust(parser)
    options.add_junit(parser)
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="do not wait for another apply of the same plan"
    )


def run(args: argparse.Namespace) -> int:
    from runner.commands import folders, reports
    from runner.execute.stopping import Stopping

    options.go_offline(args)
    how, root = _how(args), options.jobs_root(args)
    try:
        tasks = folders.tasks(args.recipes, args)
        if len(tasks) != 1 or tasks[0].recipe is None:
            return _several(tasks, args, how)
        applied = _apply(tasks[0].recipe, args, how, Stopping(args.timeout))
    except RunnerError as error:
        reports.write_junit(args.junit, root, [reports.of_error(args.recipes[0], error)])
        raise
    reports.write_junit(args.junit, root, [applied.board.job] if applied.board.job else [])
    return applied.code


def _how(args: argparse.Namespace) -> str:
    from runner.report.console import is_terminal

    how = str(args.progress)
    if how == "auto":
        how = "live" if is_terminal(sys.stdout) else "plain"
    return how


def _several(tasks: Sequence[Task], args: argparse.Namespace, how: str) -> int:
    from runner.commands import reports, several
    from runner.progress.events import make
    from runner.progress.jsonl import JsonLines
    from runner.report.console import console, show

    out = console()

    def one(task: Task, stopping: Stopping) -> several.Applied:
        if task.recipe is None:
            raise ValueError(task.file)
        if how != "jsonl":
            show([*([""] if task is not tasks[0] else []), f"{1 + tasks.index(task)}/{len(tasks)} {task.name}"], out)
        return _apply(task.recipe, args, how, stopping)

    many = len({task.file for task in tasks}) > 1 or any(Path(name).is_dir() for name in args.recipes)
    keep_going = many if args.keep_going is None else args.keep_going
    outcomes = several.run(tasks, one, keep_going=keep_going, timeout=args.timeout)
    code = several.exit_code(outcomes)
    reports.write_junit(args.junit, options.jobs_root(args), reports.of_outcomes(outcomes))
    if how == "jsonl":
        JsonLines(sys.stdout).send(make("summary", jobs=several.as_json(outcomes), exit_code=code))
    else:
        show(["", *several.summary(outcomes, out.width, args.command_line)], out)
    return code


def _apply(recipe: Recipe, args: argparse.Namespace, how: str, stopping: Stopping) -> Applied:
    """Apply one recipe, saying what happens."""
    from runner.commands import reports
    from runner.commands.several import Applied
    from runner.execute import local
    from runner.plan import resolve
    from runner.progress.board import Board
    from runner.report import preview as report
    from runner.report.console import console, show

    plan, preview = options.preview_of(recipe, args)
    out = console()
    talks = how != "jsonl"
    if talks:
        show([*report.short(preview, out.width), ""], out)
        sys.stdout.flush()
    plan = resolve.with_model(plan)
    board = Board()
    sinks: list[Sink] = [board]
    if (shown := reports.sink(_sink(how), how, plan.recipe)) is not None:
        sinks.append(shown)
    try:
        code = local.apply(
            plan, preview, jobs_root=options.jobs_root(args), sinks=sinks, device=plan.device, threads=args.threads,
            command=args.command_line, wait=args.wait, stopping=stopping,
            remote=options.remote_of(args),
        )  # fmt: skip
    finally:
        for sink in sinks:
            sink.close()
        reports.write(options.jobs_root(args), plan.job_id)
    if talks:
        show(_summary(board, plan, how, out.width), out)
    return Applied(code, board)


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
    from runner.report import job_report, terminal

    lines: list[Text | str] = []
    if how != "live":
        lines += [*([""] if how == "plain" else []), *frame.final(board, width)]
    if board.exit_code == Interrupted.exit_code:
        return [*lines, "", "interrupted at a safe point; go on with:", f"  {board.resume}"]
    if board.output is not None and board.exit_code in (0, 3):
        output = Path(board.output)
        lines += ["", *terminal.ending(output, plan.model.facts.nbytes, job_report.weights(output))]
    return lines


def _threads(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)
