"""How each checkpoint of a plan comes to be. Pure functions of the plan; the result is part of no key."""

from __future__ import annotations

from runner.contracts.lineage import AppliedStep, Lineage
from runner.plan.types import Plan, PlannedStep
from runner.recipe import secrets
from runner.steps import kinds


def of(plan: Plan, id: str) -> Lineage:
    """The lineage of what is called `id` among the inputs of steps: a model, or the result of a step.

    It goes back along the checkpoint that each step changes: not a teacher, nor what it is only compared with.
    """
    known = secrets.values(plan.recipe.document)
    given = plan.given()
    steps: list[AppliedStep] = []
    while id not in given:
        step = plan.step(id)
        steps.append(applied(plan, step))
        base = getattr(kinds.find(step.kind), "BASE", "checkpoint")
        id = step.inputs.get(base, step.inputs["checkpoint"])
    return Lineage(str(secrets.hide(given[id].source, known)), tuple(reversed(steps)))


def applied(plan: Plan, step: PlannedStep) -> AppliedStep:
    """A step as model cards describe it, which are published: without secrets."""
    params = secrets.hide(dict(step.params), secrets.values(plan.recipe.document))
    return AppliedStep(step.id, step.kind, params)
