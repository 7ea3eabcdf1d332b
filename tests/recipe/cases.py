"""Recipes for the tables of messages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from runner.errors import RecipeError
from runner.recipe.load import loads

HEAD = "version: 1\nname: a\nmodel: {source: m}\n"
DATA = "data: {text: {source: t, sequence_length: 8}}\n"


@dataclass(frozen=True)
class Case:
    """A wrong recipe and all complaints about it."""

    name: str
    text: str
    message: str
    sets: tuple[str, ...] = ()


def recipe(*lines: str, head: str = HEAD + DATA, also: str = "") -> str:
    """A recipe with these lines of `steps`; `also` is a line after its name."""
    if also:
        head = head.replace("name: a\n", f"name: a\n{also}\n")
    return head + "steps:\n" + "".join(f"  {line}\n" for line in lines)


def complaint_of(text: str, sets: tuple[str, ...] = ()) -> str:
    """The whole rendered complaint about a recipe."""
    with pytest.raises(RecipeError) as caught:
        loads(text, "r.yaml", sets)
    return caught.value.render()
