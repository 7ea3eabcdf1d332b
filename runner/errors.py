"""Every error that a user can meet, and its text.

    RunnerError                 exit code
    ├── RecipeError             2   the recipe, the model or the command line is wrong; holds Diagnostics
    ├── UsageError              2   a command-line argument makes no sense
    ├── MachineError            4   this machine cannot do it: memory, GPU, package, disk
    ├── StepFailed              1   a step stopped with an error
    ├── StoreError              1   the jobs folder cannot be read or written
    ├── GateFailed              3   a quality gate was missed
    └── Interrupted            75   stopped at a safe point; the same command goes on from there

Codes of Diagnostics are stable: R1xx syntax, R2xx schema, R3xx cross-step, R4xx model and data, R5xx machine,
R6xx models and schemes, R7xx executors and environments, R8xx structure, engines and servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

# Control characters but for tab and line feed, those that reorder the text around them, and halves of a character: text
# with them can make a terminal show something else than what is there.
DECEPTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return `text` with each deceptive character replaced by U+FFFD."""
    return DECEPTIVE.sub("\ufffd", text)


@dataclass(frozen=True)
class Span:
    """A place in a text file. `line` and `column` count from 1; `length` is in characters; `text` is the full line."""

    file: str
    line: int
    column: int
    length: int = 1
    text: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """One complaint. `path` addresses the value inside the step's params until a Span is attached to it."""

    code: str
    message: str
    help: str | None = None
    span: Span | None = None
    path: tuple[str | int, ...] = ()
    severity: str = "error"

    def at(self, span: Span | None) -> Diagnostic:
        return replace(self, span=span) if span is not None else self

    def render(self) -> str:
        """Return the text that a user sees.

        recipes/a.yaml:23:29: error[R203]: `bits` must be one of 2, 3, 4, 8; got 5
           23 |   - quantize.gptq: {bits: 5, group_size: 128}
              |                           ^
        help: `runner steps quantize.gptq` lists every parameter
        """
        head = f"{self.severity}[{self.code}]: {self.message}"
        lines = [head]
        if self.span is not None:
            span = self.span
            lines = [f"{span.file}:{span.line}:{span.column}: {head}"]
            if span.text:
                number = f"{span.line:>5}"
                lines.append(f"{number} | {span.text}")
                room = max(1, len(span.text) - span.column + 1)
                carets = "^" * max(1, min(span.length, room))
                lines.append(f"{' ' * len(number)} | {' ' * (span.column - 1)}{carets}")
        if self.help:
            lines.append(f"help: {self.help}")
        return visible("\n".join(lines))


class RunnerError(Exception):
    """Base of every expected error. `message` is one or more full sentences for a user; `help` is the remedy."""

    exit_code = 1

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help

    def render(self) -> str:
        return visible(f"error: {self.message}" + (f"\nhelp: {self.help}" if self.help else ""))


class RecipeError(RunnerError):
    """The recipe (or the model and data it names) is wrong; every complaint found at this stage is in `diagnostics`."""

    exit_code = 2

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(d.message for d in self.diagnostics))

    def render(self) -> str:
        return "\n\n".join(d.render() for d in self.diagnostics)


class UsageError(RunnerError):
    """Report an argument, of the command line or a function, that makes no sense."""

    exit_code = 2


class MachineError(RunnerError):
    """Report what this machine cannot do: memory, GPU, package, disk."""

    exit_code = 4


class StepFailed(RunnerError):
    """Report a step that stopped with an error."""

    exit_code = 1


class StoreError(RunnerError):
    """Report a jobs folder, a store or a report that cannot be read or written."""

    exit_code = 1


class GateFailed(RunnerError):
    """Report a quality gate that was missed. The results are there."""

    exit_code = 3


class Interrupted(RunnerError):
    """Report a job that stopped at a safe point; applying it again goes on from there."""

    exit_code = 75
