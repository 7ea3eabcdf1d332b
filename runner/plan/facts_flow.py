"""Facts flow through a plan: what each step will see, from what the steps before it will have made."""

from __future__ import annotations

from collections.abc import Mapping

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import METRICS_ONLY, Cost, DataFacts, Inputs, MachineFacts
from runner.errors import Diagnostic
from runner.plan.types import PlannedStep
from runner.steps import kinds


class FactsFlow:
    """Walks a plan in order: for each step `inputs`, `check` or `cost`, then `advance`."""

    def __init__(
        self, models: Mapping[str, CheckpointFacts], data: Mapping[str, DataFacts], machine: MachineFacts
    ) -> None:
        self.machine = machine
        self._data = data
        self._facts = dict(models)
        self._refused: set[str] = set()

    def inputs(self, step: PlannedStep) -> Inputs:
        given = {parameter: self._facts[id] for parameter, id in step.inputs.items()}
        checkpoint = given.pop("checkpoint")
        data = {parameter: self._data[name] for parameter, name in step.data.items()}
        return Inputs(checkpoint, given, data, self.machine, step.processes)

    def check(self, step: PlannedStep) -> list[Diagnostic]:
        """The kind's own complaints. None where an input was itself refused: its outcome is unknown."""
        if self._refused.intersection(step.inputs.values()):
            return []
        complaints = kinds.find(step.kind).check(step.params, self.inputs(step))
        if complaints:
            self._refused.add(step.id)
        return complaints

    def cost(self, step: PlannedStep) -> Cost:
        return kinds.find(step.kind).estimate(step.params, self.inputs(step))

    def advance(self, step: PlannedStep) -> None:
        """Note what the step makes, for those after it."""
        if step.produces == METRICS_ONLY:
            return
        if self._refused.intersection((step.id, *step.inputs.values())):
            self._refused.add(step.id)
            self._facts[step.id] = self._facts[step.inputs["checkpoint"]]
        else:
            self._facts[step.id] = kinds.find(step.kind).outcome(step.params, self.inputs(step))
