"""Errors on their way from one process to another."""

from __future__ import annotations

import pytest

from runner.errors import Diagnostic, MachineError, RecipeError, RunnerError, Span, StepFailed
from runner.system.process_errors import decode_error, encode_error


@pytest.mark.parametrize(
    "error",
    [
        StepFailed("it failed", "do this"),
        MachineError("too little", None),
        RecipeError([Diagnostic("R464", "short", "more", Span("a.yaml", 1, 2, 3, "text"), ("data", 0))]),
    ],
)
def test_errors_survive_the_way_between_processes(error: RunnerError) -> None:
    found = decode_error(encode_error(error, 1))
    assert (type(found), found.render(), found.exit_code) == (type(error), error.render(), error.exit_code)
