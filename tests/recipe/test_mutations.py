"""Shipped recipes with one random mistake: few complaints, each with its place, and never an unexpected error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from runner.errors import Diagnostic, RecipeError
from runner.recipe.load import loads

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
MOST = 4  # a param without its line is missed in every place that refers to it
VALUES = ("3.7", "-1", "''", "[]", "{}", "[1, 2]", "true", "null", "some text", "1e99", "${none}", '"', "{a: 1}")


def mutated(text: str, chance: random.Random) -> str:
    """One mistake: a character or line less, a line twice, another indentation, another value."""
    lines = text.splitlines(keepends=True)
    at = chance.choice([number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")])
    line = lines[at]
    way = chance.randrange(5)
    if way == 0:
        column = chance.randrange(len(line))
        lines[at] = line[:column] + line[column + 1 :]
    elif way == 1:
        lines.insert(at, line)
    elif way == 2:
        lines[at] = " " * chance.randrange(1, 5) + line if chance.random() < 0.5 else line[chance.randrange(1, 5) :]
    elif way == 3:
        key, colon, _ = line.rpartition(": ")
        lines[at] = f"{key}{colon}{chance.choice(VALUES)}\n" if colon else line[:-1] + " x\n"
    else:
        del lines[at]
    return "".join(lines)


def check(seed: int) -> None:
    chance = random.Random(seed)
    text = mutated(chance.choice(RECIPES).read_text("utf-8"), chance)
    found = complaints(text)
    shown = f"seed {seed}\n{text}\n" + "\n".join(complaint.render() for complaint in found)
    assert all(complaint.span is not None for complaint in found), shown
    assert len(found) <= MOST, shown


def complaints(text: str) -> tuple[Diagnostic, ...]:
    try:
        loads(text, "r.yaml")
    except RecipeError as error:
        return error.diagnostics
    return ()


@pytest.mark.parametrize("seed", range(40))
def test_one_mistake(seed: int) -> None:
    check(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(40, 540))
def test_many_mistakes(seed: int) -> None:
    check(seed)
