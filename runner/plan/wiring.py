"""The connections between the steps of a recipe: the inputs of each and their types, before keys exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, SAME
from runner.errors import Diagnostic
from runner.plan.types import MODEL, UNPACKED, ResolvedModel
from runner.recipe import step_graph
from runner.recipe.schema import load
from runner.recipe.types import Recipe, Step
from runner.steps import kinds

UNKNOWN = "unknown"  # type of a model that is not found, and of outputs that have the type of such a model


@dataclass(frozen=True)
class WiredStep:
    """A step whose references are resolved, as PlannedStep has them. `produces` may be UNKNOWN."""

    step: Step
    inputs: Mapping[str, str]
    data: Mapping[str, str]
    produces: str

    @property
    def id(self) -> str:
        return self.step.id

    @property
    def kind(self) -> str:
        return self.step.kind

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters that decide the result: all but gates."""
        gates = {name for name, target in load.references(self.kind).items() if target == "gates"}
        return {name: value for name, value in self.step.params.items() if name not in gates}

    @property
    def processes(self) -> int:
        return int(self.step.resources.get("processes", 1))

    @property
    def has_environment(self) -> bool:
        return self.step.env is not None


def data_names(recipe: Recipe) -> list[str]:
    """Return the data entries that steps use, sorted."""
    return sorted({
        str(step.params[parameter])
        for step in recipe.steps
        for parameter, target in load.references(step.kind).items()
        if target == "data" and step.params.get(parameter) is not None
    })  # fmt: skip


def takes_dense(recipe: Recipe) -> bool:
    """Return whether a step takes the recipe's model, and only where it is dense."""
    return any(
        QUANTIZED not in kinds.find(step.kind).CONSUMES
        and (step.source or step_graph.nearest(step.kind, recipe.steps[:index])) == MODEL
        for index, step in enumerate(recipe.steps)
    )


def wire(recipe: Recipe, models: Mapping[str, ResolvedModel]) -> tuple[list[WiredStep], dict[str, Diagnostic]]:
    """Return the wired steps, and by step id a complaint (R449) about a checkpoint of a type that the step cannot take.

    `models` are those that were found; there is no complaint about a step that takes another one. A step that takes
    no packed weights gets the model as UNPACKED, where that is among them.
    """
    wired: list[WiredStep] = []
    refused: dict[str, Diagnostic] = {}
    types = {id: QUANTIZED if model.facts.quantization else CHECKPOINT for id, model in models.items()}
    for step in recipe.steps:
        kind = kinds.find(step.kind)
        inputs, data = _references(recipe, step, wired)
        if inputs["checkpoint"] == MODEL and QUANTIZED not in kind.CONSUMES and UNPACKED in models:
            inputs = {parameter: UNPACKED if id == MODEL else id for parameter, id in inputs.items()}
        taken = types.get(inputs["checkpoint"], UNKNOWN)
        if taken not in (UNKNOWN, *kind.CONSUMES):
            refused[step.id] = _wrong_type(recipe, step, tuple(kind.CONSUMES), models[MODEL])
        types[step.id] = taken if kind.PRODUCES == SAME else kind.PRODUCES
        wired.append(WiredStep(step, inputs, data, types[step.id]))
    return wired, refused


def _references(recipe: Recipe, step: Step, earlier: Sequence[WiredStep]) -> tuple[dict[str, str], dict[str, str]]:
    """Return (parameter → checkpoint, engine or model; parameter → data entry)."""
    before = recipe.steps[: len(earlier)]
    inputs = {"checkpoint": step.source or step_graph.nearest(step.kind, before)}
    inputs |= {parameter: f"{step.id}/{parameter}" for parameter in step_graph.models_of(step)}
    data: dict[str, str] = {}
    for parameter, target in sorted(load.references(step.kind).items()):
        value = step.params.get(parameter)
        if isinstance(value, str) and target in ("checkpoint", "engine", "sensitivity", "data"):
            if target == "checkpoint":
                value = step_graph.source_of(value, inputs["checkpoint"], {e.id: e.inputs for e in earlier})
            (data if target == "data" else inputs)[parameter] = value
    return inputs, data


def _wrong_type(recipe: Recipe, step: Step, consumes: Sequence[str], model: ResolvedModel) -> Diagnostic:
    """Return the complaint about a model whose config.json shows that it has the wrong type."""
    quantization = model.facts.quantization
    if quantization and QUANTIZED not in consumes:
        method = quantization.get("quant_method", "by an unnamed method")
        message = f"`{step.kind}` takes an unquantized checkpoint; the model is already quantized ({method})"
        help = "start from the model as it was before it was quantized"
    else:
        message = f"`{step.kind}` takes a quantized checkpoint; the model is not quantized"
        help = "put a `quantize.` step before it, or start from a quantized model"
    return Diagnostic("R449", message, help, recipe.step_span(step))
