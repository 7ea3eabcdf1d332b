"""Answer one request, JSON on standard input, with JSON on standard output: what a program of one question does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def answer(ask: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Write what `ask` returns for the request. Whatever a library prints meanwhile goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    found = ask(json.load(sys.stdin))
    with answers:
        json.dump(found, answers)
