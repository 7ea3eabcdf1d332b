"""The checks of `confidence` and `mended_by` of a gate against the steps of a recipe (R832–R835)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from runner import wording
from runner.recipe import kind_types, references
from runner.recipe.schema import load
from runner.recipe.types import Step

Complaint = tuple[str, str, str, str]  # code, message, help, and the key of the rule that it is about


def complaints(
    step: Step, metric: str, rule: Mapping[str, Any], before: Mapping[str, Step], later: Collection[str]
) -> Iterator[Complaint]:
    """Yield complaints about a gate of a step; `before` are earlier steps, `later` the ids of this and those after."""
    if "confidence" in rule:
        yield from _confidence(step, metric, rule, before)
    if "mended_by" in rule:
        yield from _mending(rule, sorted(set(later) - {step.id}))


def _confidence(
    step: Step, metric: str, rule: Mapping[str, Any], before: Mapping[str, Step]
) -> Iterator[Complaint]:  # fmt: skip
    noisy = kind_types.noisy(step.kind)
    if kind_types.matching(noisy, metric) is None:
        message = f"`confidence` cannot be given for `{metric}`: how far `{step.kind}` knows it is not known"
        help = f"it is for {wording.ticked(noisy)}" if noisy else "leave it out"
        yield "R832", message, help, "confidence"
        return
    reference = references.from_rule(rule)
    if reference is not None and reference.job is not None:
        message = f"`confidence` compares window by window, and of `{reference.text}` only metrics are known"
        yield "R833", message, "compare with a step of this recipe", "confidence"
    other = before.get(reference.step or "") if reference is not None else None
    if other is not None and not _measures_the_same(step, other):
        message = f"`confidence` compares window by window, and `{other.id}` does not measure as this step does"
        yield "R834", message, "give both the same parameters", "confidence"


def _measures_the_same(one: Step, other: Step) -> bool:
    """Return whether two steps measure windows or questions that are the same, one by one."""
    named = {name for name, to in load.references(one.kind).items() if to not in ("data", "tasks")}

    def how(step: Step) -> dict[str, Any]:
        return {name: value for name, value in step.params.items() if name not in named}

    return one.kind == other.kind and how(one) == how(other)


def _mending(rule: Mapping[str, Any], later: Collection[str]) -> Iterator[Complaint]:
    name = rule["mended_by"]
    if rule.get("on_miss", "stop") != "stop":
        message = f"`mended_by` is for `on_miss: stop`; with `{rule['on_miss']}` other steps run anyway"
        yield "R835", message, "leave one of them out", "mended_by"
    elif name not in later:
        message = f"`mended_by` names `{name}`, which is no later step{wording.did_you_mean(name, later)}"
        help = f"it may name {wording.ticked(later, 'or')}" if later else "no step comes later"
        yield "R835", message, help, "mended_by"
