"""`runner apply`: print the plan and its cost, run it with progress, print the result."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import Interrupted, RunnerError

if TYPE_CHECKING:
    from rich.text import Text

    from runner.commands.folders import Task
    from runner.commands.several import Applied
    from runner.commands.together import How
    from runner.execute.executor import Maker
    from runner.execute.settings import ApplySettings
    from runner.execute.stopping import Stopping
    from runner.plan.types import Plan
    from runner.progress.board import Board
    from runner.progress.events import Sink
    from runner.recipe.types import Recipe


_DETACH = "--detach"


@dataclass(frozen=True)
class Options:
    """`progress` is "live", "plain", "jsonl" or "none". `command` is the command line, printed to resume with.

    `maker` makes the executor of a cluster, once it is connected. `detach` has the words of the command to start
    without a terminal; it is empty for one that runs here.
    """

    recipes: tuple[str, ...]
    resolving: options.Resolving
    offline: bool
    threads: int | None
    remote: str | None
    wait: bool
    timeout: float | None
    keep_going: bool | None
    executor: options.ExecutorOptions
    progress: str
    junit: Path | None
    command: str
    maker: Maker | None = None
    detach: tuple[str, ...] = ()


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipes(parser)
    options.add_jobs(parser)
    options.add_device(parser)
    parser.add_argument("--threads", metavar="N", type=_count, help="threads to compute with; default: every core")
    parser.add_argument(
        "--jobs-at-once", metavar="N", type=_count,
        help="run up to N steps at the same time, within the memory of this machine; default 1, on a cluster no limit",
    )  # fmt: skip
    options.add_executor(parser)
    parser.add_argument(
        "--progress", choices=("auto", "live", "plain", "jsonl", "none"), default="auto",
        help="how to show progress; auto: live on a terminal, else plain lines; jsonl: events, one JSON object a line",
    )  # fmt: skip
    parser.add_argument(
        "--keep-going", action=argparse.BooleanOptionalAction, default=None,
        help="continue with the next job after one that failed; the default for a folder and for several recipes",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", metavar="TIME", type=options.duration,
        help="stop each job at the first safe point after this time (30m, 2h), with exit code 75, to continue later",
    )  # fmt: skip
    options.add_offline(parser)
    options.add_remote(parser)
    options.add_locked(parser)
    options.add_trust(parser)
    options.add_junit(parser)
    parser.add_argument(
        _DETACH, action="store_true", help="plan, then go on in the background, also after this terminal is closed"
    )
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="do not wait for another apply of the same plan"
    )


def read_options(args: argparse.Namespace) -> Options:
    return Options(
        recipes=tuple(args.recipes), resolving=options.resolving(args), offline=args.offline, threads=args.threads,
        remote=options.remote_url(args), wait=args.wait, timeout=args.timeout, keep_going=args.keep_going,
        executor=options.executor(args),
        progress=_progress(args.progress), junit=args.junit, command=args.command_line,
        detach=tuple(word for word in args.words if word != _DETACH) if args.detach else (),
    )  # fmt: skip


def _progress(asked: str) -> str:
    from runner.report.console import is_terminal

    if asked == "auto":
        return "live" if is_terminal(sys.stdout) else "plain"
    return asked


def run(opts: Options) -> int:
    from runner.commands import cluster, folders, reports
    from runner.execute.stopping import Stopping

    options.go_offline(opts.offline)
    root = opts.resolving.jobs
    try:
        tasks = folders.tasks(opts.recipes, opts.resolving)
        with cluster.connected(opts.executor, opts.remote, root) as found:
            opts = replace(opts, resolving=replace(opts.resolving, offer=found.offer), maker=found.maker)
            if opts.detach:
                return _detach(tasks, opts)
            searches = [task.recipe for task in tasks if task.recipe is not None and task.recipe.search is not None]
            if searches:
                return _with_searches([task for task in tasks if task.recipe not in searches], searches, opts)
            if len(tasks) != 1 or tasks[0].recipe is None:
                return _several(tasks, opts)
            applied = _apply(tasks[0].recipe, opts, Stopping(opts.timeout))
    except RunnerError as error:
        reports.write_junit(opts.junit, root, [reports.refused(opts.recipes[0], error)])
        raise
    reports.write_junit(opts.junit, root, [applied.board.job] if applied.board.job else [])
    return applied.code


def _with_searches(tasks: Sequence[Task], searches: Sequence[Recipe], opts: Options) -> int:
    """Apply recipes without a search, then run the searches of the others, one after another."""
    from runner.api.searching import STOPS
    from runner.commands import reports, searching, several
    from runner.report.console import console, show
    from runner.report.search import after_apply

    codes = [_several(tasks, replace(opts, junit=None))] if tasks else []
    out = console()
    jobs: list[str] = []
    for recipe in searches:
        ended = searching.run(recipe, _how(opts, keep_going=True))
        jobs += dict.fromkeys(each.job for each in ended.archive.trials if each.job is not None)
        codes.append(ended.code)
        if opts.progress == "jsonl":
            from runner.progress.events import make
            from runner.progress.jsonl import JsonLines

            fields = searching.summary(ended)
            JsonLines(sys.stdout).send(make("search_finished", **fields))
        else:
            show(["", *after_apply(ended.archive, ended.code, opts.command, out.width)], out)
        if ended.code in STOPS:
            break
    reports.write_junit(opts.junit, opts.resolving.jobs, jobs)
    return several.worst(codes)


def _how(opts: Options, *, keep_going: bool) -> How:
    from runner.commands import together
    from runner.execute.application import Manner

    manner = Manner(keep_going, opts.timeout, opts.maker)
    return together.How(opts.resolving, _settings(opts), opts.progress, manner)


def _detach(tasks: Sequence[Task], opts: Options) -> int:
    """Plan every job, so that complaints are seen here, and start the same command without a terminal."""
    from runner.commands import detached, folders
    from runner.report.console import console, show

    jobs = []
    for task in tasks:
        if task.error is not None:
            raise task.error
        if task.recipe is not None:
            jobs.append(folders.planned(task.recipe, opts.resolving).job_id)
    pid, log = detached.start(opts.detach, opts.resolving.jobs)
    several = "1 job goes on" if len(jobs) == 1 else f"{len(jobs)} jobs go on"
    lines = [f"{several} in the background as process {pid}:", *(f"  {job}" for job in jobs), "", f"output: {log}"]
    show([*lines, f"`runner jobs` shows how far they are; `kill {pid}` stops at a safe point"], console())
    return 0


def _several(tasks: Sequence[Task], opts: Options) -> int:
    from runner.commands import reports, several, together
    from runner.progress.events import make
    from runner.progress.jsonl import JsonLines
    from runner.report.console import console, show

    out = console()

    def one(task: Task, stopping: Stopping) -> several.Applied:
        if task.recipe is None:
            raise ValueError(task.file)
        if opts.progress != "jsonl":
            show([*([""] if task is not tasks[0] else []), f"{1 + tasks.index(task)}/{len(tasks)} {task.name}"], out)
        return _apply(task.recipe, opts, stopping)

    many = len({task.file for task in tasks}) > 1 or any(Path(name).is_dir() for name in opts.recipes)
    keep_going = many if opts.keep_going is None else opts.keep_going
    started = time.perf_counter()
    at_once = opts.maker is not None or (opts.executor.at_once or 1) > 1
    if at_once:
        outcomes = together.run(tasks, _how(opts, keep_going=keep_going))
    else:
        outcomes = several.run(tasks, one, keep_going=keep_going, timeout=opts.timeout)
    took = time.perf_counter() - started if at_once else None
    code = several.exit_code(outcomes)
    reports.write_junit(opts.junit, opts.resolving.jobs, reports.junit_jobs(outcomes))
    if opts.progress == "jsonl":
        JsonLines(sys.stdout).send(make("summary", jobs=several.as_json(outcomes), exit_code=code))
    else:
        show(["", *several.summary(outcomes, out.width, opts.command, took)], out)
    return code


def _apply(recipe: Recipe, opts: Options, stopping: Stopping) -> Applied:
    """Apply one recipe and show its progress."""
    from runner.api import execution
    from runner.commands import folders, reports
    from runner.commands.several import Applied
    from runner.progress.board import Board
    from runner.report import preview as report
    from runner.report.console import console, show

    how = opts.progress
    planned = folders.planned(recipe, opts.resolving)
    out = console()
    if how != "jsonl":
        show([*report.short(planned.preview, out.width), ""], out)
        sys.stdout.flush()
    planned = planned.with_models()
    board = Board()
    sinks: list[Sink] = [board]
    if (shown := reports.sink(_sink(how), how, recipe)) is not None:
        sinks.append(shown)
    try:
        code = execution.run(planned, _settings(opts), sinks=sinks, stopping=stopping, executor=opts.maker)
    finally:
        for sink in sinks:
            sink.close()
        reports.write(planned.jobs, planned.job_id)
    if how != "jsonl":
        show(_summary(board, planned.plan, how, out.width), out)
    return Applied(code, board)


def _settings(opts: Options) -> ApplySettings:
    from runner.execute.settings import ApplySettings
    from runner.job.remote import Remote

    remote = Remote(opts.remote) if opts.remote else None
    return ApplySettings(opts.command, opts.threads, opts.wait, remote, jobs_at_once=opts.executor.at_once or 1)


def _sink(how: str) -> Sink | None:
    """Return the sink that shows events on stdout; only the live one needs rich."""
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
    """Return the result of every step (the live view has printed it already), and where the output is."""
    from runner.progress import frame
    from runner.report import job_report, terminal

    lines: list[Text | str] = []
    if how != "live":
        lines += [*([""] if how == "plain" else []), *frame.final(board, width)]
    if board.exit_code == Interrupted.exit_code:
        return [*lines, "", "interrupted at a safe point; continue with:", f"  {board.resume}"]
    if board.output is not None and board.exit_code in (0, 3):
        output = Path(board.output)
        lines += ["", *terminal.ending(output, plan.model.facts.nbytes, job_report.weights(output))]
    return lines


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)
