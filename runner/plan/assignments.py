"""What steps with `bits: auto` or `sparsity: auto` assign, where what they were measured by is in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.plan import keys, machine, resolve_inputs
from runner.plan.facts_flow import FactsFlow
from runner.plan.types import Plan
from runner.steps.assignment import BITS, SPARSITY, is_auto

if TYPE_CHECKING:
    from runner.plan.preview import StoreView

Assigned = Mapping[str, Mapping[str, Any]]  # id of a step → assignment.Assignment.document


def known(plan: Plan, store: StoreView) -> Assigned:
    """Return the assignment of each step whose measurement is in the store.

    Raises what the kinds' checks find only with the measurement: StepFailed where no assignment meets a limit.
    """
    if not any(is_auto(step.params) for step in plan.steps):
        return {}
    found = resolve_inputs.Found(plan.model, plan.model.path)
    data, _ = resolve_inputs.measure_data(plan.recipe, found, plan.data, None)
    models = {id: model.facts for id, model in plan.given().items()}
    flow = FactsFlow(models, data, machine.machine_facts(plan.device))
    assigned = {}
    for step in plan.steps:
        if flow.is_measured(step):
            assigned[step.id] = flow.assignment(step)
        flow.advance(step)
        if store.has(step.key):
            flow.found(step, store.out(step.key))
    return assigned


def entries(assigned: Iterable[tuple[Plan, Assigned]]) -> dict[str, dict[str, Any]]:
    """Return the entries of a lock: by the id of the step, and where plans differ, by its key too."""
    found: dict[str, dict[str, dict[str, Any]]] = {}  # id → key → entry
    for plan, by_step in assigned:
        for id, document in by_step.items():
            entry = {**document, "digest": keys.sha256(document[SPARSITY if SPARSITY in document else BITS])}
            found.setdefault(id, {})[plan.step(id).key] = entry
    named: dict[str, dict[str, Any]] = {}
    for id, by_key in found.items():
        alike = len({entry["digest"] for entry in by_key.values()}) == 1
        named |= {id if alike else f"{id}@{key[:12]}": entry for key, entry in by_key.items()}
    return dict(sorted(named.items()))
