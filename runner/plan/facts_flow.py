"""The flow of facts through a plan: the facts that each step will see, from the outcomes of earlier steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from runner.contracts import sensitivity
from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_description import Linears
from runner.contracts.planned_account import PlannedAccount
from runner.contracts.step_kind import ENGINE, METRICS_ONLY, QUANTIZED, Cost, DataFacts, Inputs, MachineFacts
from runner.errors import Diagnostic
from runner.plan import tensor_account
from runner.steps import architectures, automatic, kinds


class Wired(Protocol):
    """The properties of a step, planned or not, that the flow uses; `inputs` and `data` are by parameter."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, str]: ...
    @property
    def data(self) -> Mapping[str, str]: ...
    @property
    def produces(self) -> str: ...
    @property
    def processes(self) -> int: ...
    @property
    def has_environment(self) -> bool: ...


class FactsFlow:
    """Facts for walking a plan in order: for each step `inputs`, `check` or `cost`, then `advance`.

    A checkpoint is unknown where its model was not found, or where the step that makes it, or one before that, was
    refused; a data entry is unknown where it was not found.
    """

    def __init__(
        self, models: Mapping[str, CheckpointFacts], data: Mapping[str, DataFacts], machine: MachineFacts
    ) -> None:
        self.machine = machine
        self._data = data
        self._facts = dict(models)

    def inputs(self, step: Wired) -> Inputs:
        """Return the inputs that the step sees. Raises KeyError where `is_known` is false."""
        given = {parameter: self._facts[id] for parameter, id in step.inputs.items()}
        checkpoint = given.pop("checkpoint")
        data = {parameter: self._data[name] for parameter, name in step.data.items()}
        return Inputs(checkpoint, given, data, self.machine, step.processes, step.has_environment)

    def is_known(self, step: Wired) -> bool:
        """Return whether all inputs of the step are known, so that its kind can check it."""
        return all(id in self._facts for id in step.inputs.values()) and all(
            name in self._data for name in step.data.values()
        )

    def check(self, step: Wired) -> list[Diagnostic]:
        """Return the complaints and warnings of the step's kind; none where one of its inputs is unknown."""
        if not self.is_known(step):
            return []
        inputs = self.inputs(step)
        kind = kinds.find(step.kind)
        unsupported = architectures.refuse(step.kind, inputs.checkpoint)
        unsupported = unsupported or architectures.refuse(step.kind, kinds.source_facts(kind, inputs))
        for facts in (inputs.checkpoint, *inputs.others.values()):
            unsupported = unsupported or architectures.refuse_cache(step.kind, facts)
        unsupported = unsupported or architectures.refuse_images(step.kind, inputs)
        return [unsupported] if unsupported else kind.check(step.params, inputs)

    def sites(self, step: Wired) -> dict[str, tuple[str, ...]]:
        """Return the names of the sites of each input of a step, by parameter."""
        return {p: tuple(s.name for s in self._facts[id].sites) for p, id in step.inputs.items() if id in self._facts}

    def account(self, step: Wired) -> tuple[PlannedAccount | None, list[Diagnostic]]:
        """Return the planned account of the step's tensors, after `advance`, and complaints about it.

        The account is None where the step makes no checkpoint.
        """
        if step.produces in (METRICS_ONLY, ENGINE) or not (self.is_known(step) and step.id in self._facts):
            return None, []
        inputs = self.inputs(step)
        kind = kinds.find(step.kind)
        changes = kinds.changes(kind, step.params, inputs)
        before, after = kinds.source_facts(kind, inputs), self._facts[step.id]
        if not (before.tensors or after.tensors):
            return None, []
        found, complaints = tensor_account.account(before, after, changes, kinds.adds(kind, step.params, inputs))
        return found.without_shapes(kinds.unsettled(kind, step.params, inputs)), complaints

    def trains(self, step: Wired) -> str:
        """Return what a step trains, as a line of the plan; "" where its kind does not say."""
        return kinds.trains(kinds.find(step.kind), step.params, self.inputs(step)) if self.is_known(step) else ""

    def linears(self, step: Wired) -> dict[str, Linears]:
        """Return the linear modules of the model of each input, by parameter, where the model was described."""
        found = {p: self._facts[id].description for p, id in step.inputs.items() if id in self._facts}
        return {parameter: each.linears for parameter, each in found.items() if each is not None}

    def result(self, step: Wired) -> CheckpointFacts | None:
        """Return the facts of what a step makes, after `advance`; None of a step that measures or was refused."""
        return None if step.produces == METRICS_ONLY else self._facts.get(step.id)

    def cost(self, step: Wired) -> Cost:
        return kinds.find(step.kind).estimate(step.params, self.inputs(step))

    def advance(self, step: Wired) -> None:
        """Record the outcome of the step, for those after it; not called for a step that was refused."""
        kind = kinds.find(step.kind)
        if (step.produces != METRICS_ONLY or hasattr(kind, "outcome")) and self.is_known(step):
            made = kind.outcome(step.params, self.inputs(step))
            packs = kind.PRODUCES == QUANTIZED and QUANTIZED not in kind.CONSUMES
            made = replace(made, compressed_by=step.kind) if packs else made
            self._facts[step.id] = replace(made, unpacked={})

    def found(self, step: Wired, folder: Path) -> None:
        """Record what a step measured, after `advance`; `folder` has its files. Steps that measure no sites have none.

        Raises what runner.contracts.sensitivity.read raises.
        """
        facts = self._facts.get(step.id)
        if facts is not None and facts.measured is not None and step.produces == METRICS_ONLY:
            self._facts[step.id] = replace(facts, measured={**facts.measured, "result": sensitivity.read(folder)})

    def is_measured(self, step: Wired) -> bool:
        """Return whether a step assigns bits by a measurement that is there already."""
        return self.is_known(step) and automatic.is_measured(step.params, self.inputs(step))

    def assignment(self, step: Wired) -> Mapping[str, Any]:
        """Return the bits that such a step assigns to modules."""
        return automatic.assignment(step.params, self.inputs(step))
