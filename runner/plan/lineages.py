"""The lineage of each checkpoint of a plan. Pure functions of the plan; the result is part of no key."""

from __future__ import annotations

from runner.contracts.lineage import AppliedStep, Lineage
from runner.plan.types import Plan, PlannedStep
from runner.recipe import secrets
from runner.steps import kinds


def lineage_of(plan: Plan, id: str) -> Lineage:
    """Return the lineage of the input `id` of steps: a model, or the result of a step.

    It follows the checkpoint that each step changes, not a teacher or a checkpoint that is only compared.
    """
    known = secrets.values(plan.recipe.document)
    given = plan.given()
    steps: list[AppliedStep] = []
    while id not in given:
        step = plan.step(id)
        steps.append(applied_step(plan, step))
        base = getattr(kinds.find(step.kind), "BASE", "checkpoint")
        id = step.inputs.get(base, step.inputs["checkpoint"])
    return Lineage(str(secrets.hide(given[id].source, known)), tuple(reversed(steps)))


def applied_step(plan: Plan, step: PlannedStep) -> AppliedStep:
    """Return a step as model cards, which are published, describe it: without secrets."""
    params = secrets.hide(dict(step.params), secrets.values(plan.recipe.document))
    return AppliedStep(step.id, step.kind, params)
