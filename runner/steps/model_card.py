"""The model card of a step's result, with the planner's lineage and the step's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from runner.contracts.context import Context
from runner.model import card


def render(ctx: Context, results: Sequence[Mapping[str, Any]] = (), base: str = "checkpoint") -> Callable[[Path], str]:
    """Return a function that renders the card of the checkpoint in a folder.

    `base` is the input that the step changed.
    """
    source = ctx.inputs[base]
    lineage = replace(source.lineage, steps=(*source.lineage.steps, ctx.step))
    return partial(card.render, card.Origin(source.path, lineage, ctx.recipe_text), results=results)
