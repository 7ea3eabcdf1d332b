"""The model card of what a step has made: its lineage is the planner's, its numbers those of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from runner.contracts.context import Context
from runner.model import card


def render(ctx: Context, results: Sequence[Mapping[str, Any]] = (), base: str = "checkpoint") -> Callable[[Path], str]:
    """A function that gives the card of the checkpoint in a folder. `base` is the input that the step has changed."""
    source = ctx.inputs[base]
    lineage = replace(source.lineage, steps=(*source.lineage.steps, ctx.step))
    return partial(card.render, card.Origin(source.path, lineage, ctx.recipe_text), results=results)
