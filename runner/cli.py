"""The command line: find the command, run it, and turn its errors into messages and exit codes.

Only the requested command is imported: `runner/commands/<name>.py`, a module with
`configure(parser)`, `read_options(args) -> Options` and `run(options) -> exit code`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, Protocol, cast

import runner
from runner.errors import RunnerError, UsageError

COMMANDS = {
    "apply": "run a recipe: reuse what is done, resume what was interrupted",
    "plan": "show what apply would do, why, and what it would cost",
    "validate": "check recipes and list every complaint",
    "show": "print the resolved recipe, with where each value comes from",
    "lock": "pin what the names in a recipe refer to: model, data, parents, packages",
    "pack": "make an installable package of a folder of recipes",
    "new": "write a commented starter recipe for a model",
    "steps": "list the kinds of steps, or describe one",
    "jobs": "list, show, accept, sign or remove jobs",
    "search": "show the trials of a search, or write its best one as a recipe",
    "generate": "write text with what a job made",
    "verify": "hash every file of a job again, against its records",
    "reproduce": "apply a job again in an empty store, and compare digests",
    "env": "list, build or remove the environments of foreign tools",
    "store": "list, verify, clean, push or pull the results of steps",
    "report": "show what a job did: times, sizes, metrics, gates",
    "diff": "show the differences between two jobs, or two recipes",
    "compare": "compare jobs side by side, and mark those that no other dominates",
    "schema": "print the JSON Schema of recipes, for editors",
    "doctor": "check what this machine and installation can do",
}
INTERRUPTED = 130


class Command(Protocol):
    """The module of a command. `read_options` turns the arguments into a frozen dataclass, which `run` takes."""

    def configure(self, parser: argparse.ArgumentParser) -> None: ...
    def read_options(self, args: argparse.Namespace) -> Any: ...
    def run(self, opts: Any) -> int: ...


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, so that its errors look like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"`{self.prog} --help` shows how to use it")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Never raises, never shows a traceback unless RUNNER_DEBUG=1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets "?", not a crash
    try:
        code = dispatch(arguments)
        sys.stdout.flush()
        return code
    except RunnerError as error:
        print(error.render(), file=sys.stderr)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            from runner.report.ci import github

            github.complain(error, sys.stderr)
        return error.exit_code
    except SystemExit as end:  # --help and --version of argparse
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("RUNNER_DEBUG") == "1":
            raise
        from runner.commands import crash

        return crash.report(error, arguments)


def dispatch(arguments: list[str]) -> int:
    """Find the command and run it. UsageError where there is none of that name."""
    name = next((word for word in arguments if not word.startswith("-")), None)
    before = arguments[: arguments.index(name)] if name is not None else arguments
    if name is None or before:
        overview().parse_args(before)
        if name is None:
            print(overview().format_help(), end="")
            return UsageError.exit_code
    if name not in COMMANDS:
        raise UsageError(f"there is no command `{name}`{_meant(name, COMMANDS)}", "`runner --help` lists the commands")
    command = cast(Command, importlib.import_module(f"runner.commands.{name}"))
    parser = Parser(prog=f"runner {name}", description=_sentence(COMMANDS[name]), allow_abbrev=False)
    command.configure(parser)
    args, unknown = parser.parse_known_args(arguments[len(before) + 1 :])
    if unknown:
        options = (word for word in parser.format_help().replace(",", " ").split() if word.startswith("--"))
        what = f"`{parser.prog}` does not take `{unknown[0]}`{_meant(unknown[0], options)}"
        raise UsageError(what, f"`{parser.prog} --help` lists what it takes")
    from runner.recipe import secrets  # not for `--help`

    # Events, locks and messages show it, to be run again: secrets are hidden in it and must be given again.
    args.words = arguments
    args.command_line = shlex.join(["runner", *map(secrets.hide_in_word, arguments)])
    return command.run(command.read_options(args))


def overview() -> argparse.ArgumentParser:
    """Return the parser of `runner --help`."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="runner",
        usage="runner COMMAND ...",
        description="Compress language models from one validated recipe.",
        epilog=f"commands:\n{listed}\n\n`runner COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"runner {runner.__version__}")
    return parser


def _meant(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
