"""Sensitivities that were measured of another checkpoint than the one that is changed by them."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import Diagnostic
from runner.plan.wiring import WiredStep
from runner.recipe.types import Recipe

_PARAMETER = "sensitivity"


def warnings(recipe: Recipe, wired: Sequence[WiredStep]) -> list[Diagnostic]:
    """Return a warning (R869) of each step whose assignment rests on what other weights would lose.

    Names and shapes are alike where a rewrite, a pruning or a training lies between, so that nothing else shows it.
    """
    takes = {each.id: each.inputs["checkpoint"] for each in wired}
    found = []
    for each in wired:
        measure = each.inputs.get(_PARAMETER)
        if measure is None or takes[measure] == takes[each.id]:
            continue
        message = f"`{measure}` has measured `{takes[measure]}`, and `{each.id}` changes `{takes[each.id]}` by it"
        help = f"measure again: a step of `analyze.sensitivity` with `from: {takes[each.id]}`"
        span = recipe.step_span(each.step, (_PARAMETER,))
        found.append(Diagnostic("R869", message, help, span, severity="warning"))
    return found
