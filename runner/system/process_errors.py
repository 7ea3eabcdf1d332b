"""Errors of a process as JSON, for the process that started it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from runner.errors import Diagnostic, MachineError, RecipeError, RunnerError, Span, StepFailed

_ERRORS: dict[str, type[RunnerError]] = {"MachineError": MachineError, "StepFailed": StepFailed}


def write_error(folder: Path, rank: int, error: BaseException) -> None:
    """Leave the error of process `rank` in `folder`, for `first_error`."""
    path = folder / f"error-{rank}.json"
    path.with_suffix(".new").write_text(json.dumps(encode_error(error, rank)), encoding="utf-8")
    path.with_suffix(".new").replace(path)


def first_error(folder: Path, process: str) -> RunnerError | None:
    """Return the first error that processes left in `folder`, which caused those of the others; None without one.

    `process` is what messages call the processes.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("error-*.json"))]
    if not found:
        return None
    return decode_error(min(found, key=lambda error: (error["type"] == "other", error["time"])), process)


def encode_error(error: BaseException, rank: int) -> dict[str, Any]:
    """Encode an error of process `rank` as JSON."""
    about: dict[str, Any] = {"time": time.time(), "rank": rank}
    if isinstance(error, RecipeError):
        found = [
            {
                "code": d.code, "message": d.message, "help": d.help, "path": list(d.path), "severity": d.severity,
                "span": None if d.span is None else vars(d.span),
            }
            for d in error.diagnostics
        ]  # fmt: skip
        return {**about, "type": "RecipeError", "diagnostics": found}
    if isinstance(error, RunnerError):
        kind = type(error).__name__
        return {
            **about, "type": kind if kind in _ERRORS else "StepFailed", "message": error.message, "help": error.help
        }  # fmt: skip
    return {**about, "type": "other", "name": type(error).__name__, "message": first_line(error)}


def decode_error(value: dict[str, Any], process: str = "process") -> RunnerError:
    """Decode an error of `encode_error`; `process` is what messages call the processes."""
    if value["type"] == "RecipeError":
        return RecipeError(
            Diagnostic(
                d["code"], d["message"], d["help"], None if d["span"] is None else Span(**d["span"]),
                tuple(d["path"]), d["severity"],
            )
            for d in value["diagnostics"]
        )  # fmt: skip
    if value["type"] in _ERRORS:
        return _ERRORS[value["type"]](value["message"], value["help"])
    return StepFailed(
        f"{process} {value['rank']} failed with an unexpected {value['name']}: {value['message']}",
        "the log of the step has its traceback",
    )


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
