"""Warnings about plans that measure a model on the text that it was calibrated or trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from runner.contracts.step_kind import CHECKPOINT
from runner.errors import Diagnostic
from runner.plan.types import ResolvedData
from runner.plan.wiring import WiredStep
from runner.recipe import kind_types
from runner.recipe.types import Recipe

_HELP = "name another split or file, so that the result is about other text"


def warnings(recipe: Recipe, steps: Sequence[WiredStep], data: Mapping[str, ResolvedData]) -> list[Diagnostic]:
    """Return a warning (R419) for every step that measures a checkpoint, or a training its progress, on such a text.

    Windows are cut from the beginning of a text: two entries that share a file share their windows. An engine may be
    compared with its checkpoint on any text.
    """
    by_id = {step.id: step for step in steps}
    found = []
    for step in steps:
        for parameter, seen_by, seen in _seen_before(step, by_id):
            if not _same_text(data.get(step.data[parameter]), data.get(seen)):
                continue
            what = f"the text of data `{step.data[parameter]}`" + (
                f" (as `{seen}`)" if seen != step.data[parameter] else ""
            )
            how = "this step trains on" if seen_by is step else f"`{seen_by.id}` has seen"
            message = f"`{step.kind}` measures on {what}, which {how}: the result is too good"
            span = recipe.step_span(step.step, (parameter,))
            found.append(Diagnostic("R419", message, _HELP, span, severity="warning"))
            break
    return found


def _seen_before(step: WiredStep, steps: Mapping[str, WiredStep]) -> Iterator[tuple[str, WiredStep, str]]:
    """Yield (parameter that names the evaluation data, step that has seen data, name of that data)."""
    if kind_types.makes_checkpoint(step.kind):
        if "evaluation" in step.data:
            yield from (("evaluation", step, name) for key, name in step.data.items() if key != "evaluation")
    elif CHECKPOINT in kind_types.consumes(step.kind):
        before = steps.get(step.inputs["checkpoint"])
        while before is not None:
            for parameter in step.data:
                yield from ((parameter, before, name) for key, name in before.data.items() if key != "evaluation")
            before = steps.get(before.inputs["checkpoint"])


def _same_text(one: ResolvedData | None, other: ResolvedData | None) -> bool:
    if one is None or other is None:
        return False
    if one.files and other.files:
        return one.digest == other.digest or not set(one.files).isdisjoint(other.files)
    return (one.digest, one.spec.split, one.spec.field) == (other.digest, other.spec.split, other.spec.field)
