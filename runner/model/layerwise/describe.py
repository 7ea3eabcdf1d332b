"""Describe a checkpoint as transformers reads it: `python -m runner.model.layerwise.describe < request > description`.

The request is JSON: `folder` (with config.json), `tensors` (name in the checkpoint → shape), `packed` (the shapes of
weights that are stored packed, by the names of plain ones), `own_code` (whether the code that the model brings may
run). The answer is a `runner.contracts.model_description.ModelDescription` as JSON. The planner asks through
`runner.model.architecture.probe`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from runner.contracts import model_description
from runner.contracts.model_description import (
    LinearModule,
    Linears,
    ModelDescription,
    Parameter,
    Problem,
    is_of_experts,
)
from runner.errors import RecipeError
from runner.model.layerwise import attention_caches, linear_calls, mixtures, refusals, stream_check, tensor_names
from runner.model.layerwise.conversions import Conversions
from runner.model.layerwise.layer_list import find_layers
from runner.model.layerwise.linear import is_conv1d, is_linear
from runner.system import answering


def main() -> None:
    answering.answer(describe)


def describe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request (see above)."""
    folder = Path(request["folder"])
    with _warnings() as warnings:
        model, problems = refusals.build(folder, bool(request["own_code"]))
        description = ModelDescription(problems=problems)
        if model is not None:
            description = of_model(model, *(_shapes(request[key]) for key in ("tensors", "packed")))
            if not (problems or description.missing or description.misshaped):
                problems += refusals.running(folder, bool(request["own_code"]), model)
                streamed = stream_check.Streamed(problems)
                if not problems:
                    streamed = stream_check.check(model.config, bool(request["own_code"]))
                problems = streamed.problems
                stored = {each.name: each.stored for each in description.parameters}
                called = linear_calls.linears(model, description.linears.modules)
                description = replace(
                    description,
                    linears=replace(called, mixtures=description.linears.mixtures),
                    hands_state=streamed.hands_state,
                    caches=attention_caches.described(model, stored),
                    counts_heads=attention_caches.counts_heads(model),
                )
            description = replace(description, problems=problems + _companions(folder, request))
    return model_description.to_json(replace(description, warnings=tuple(dict.fromkeys(warnings))))


def _companions(folder: Path, request: Mapping[str, Any]) -> tuple[Problem, ...]:
    return refusals.generation(folder) + refusals.tokenizer(folder, bool(request["own_code"]))


def _shapes(given: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in given.items()}


def of_model(
    model: Any, tensors: Mapping[str, tuple[int, ...]], packed: Mapping[str, tuple[int, ...]] | None = None
) -> ModelDescription:
    """What an empty model makes of tensors of these names and shapes; `packed` has those of weights that are packed."""
    names = tensor_names.name_map(model, tensors)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = []
    for name, shape in wanted.items():
        module = model.get_submodule(name.rpartition(".")[0])
        stored = names.stored.get(name, (None,))[0]
        kind = _kind(module) if name.rpartition(".")[2] in module._parameters else model_description.BUFFER
        parameters.append(Parameter(name, stored, shape, kind, type(module).__name__))
    strange = {name: stored for name, stored in names.stored.items() if name not in wanted}
    passed = {name for name, stored in strange.items() if any(tensor_names.ignored(model, n) for n in (name, *stored))}
    lacking, extra = mixtures.misplaced(names.converted, wanted)
    made = Conversions(model, names.converted, {**tensors, **(packed or {})})
    failed = () if lacking or extra else tuple(made.failed)
    converted = bool(made.failed)  # of which parameters they are is known to transformers alone
    layers, count = _layers(model)
    experts = next((each.name for each in parameters if is_of_experts(each)), "")
    found = mixtures.find(model, layers, names, made) if layers and experts and not converted else ()
    followed = {f"{each.name}." for each in found if not each.unfollowed}
    return ModelDescription(
        architecture=type(model).__name__,
        layers=layers,
        layer_count=count,
        parameters=tuple(parameters),
        ties=names.ties,
        both_stored=names.both_stored,
        missing=tuple(lacking) if converted else tuple(
            name for name in wanted
            if name not in names.stored and name not in names.ties and name not in made
            and not tensor_names.may_be_missing(model, name)
        ),
        misshaped={
            each.name: tensors[each.stored]
            for each in parameters
            if each.stored is not None and tensors.get(each.stored, each.shape) != each.shape
        },
        packed=names.packed,
        ignored=tuple(stored for name in sorted(passed) for stored in strange[name]),
        unexpected=(*extra, *(stored for name in sorted(set(strange) - passed) for stored in strange[name])),
        converted=failed,
        duplicates={name: stored for name, stored in names.stored.items() if len(stored) > 1},
        experts=experts,
        built=tuple(
            name for group in names.converted for name, _ in group.sources
            if f"{group.target.rpartition('.')[0]}." not in followed
        ),
        linears=Linears(_linears(model, {each.name: each.stored for each in parameters}), mixtures=found),
    )  # fmt: skip


def _linears(model: Any, stored: Mapping[str, str | None]) -> tuple[LinearModule, ...]:
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear(module):
            weight = stored.get(f"{name}.weight")
            found.append(LinearModule(name, None if weight is None else weight.removesuffix(".weight")))
    return tuple(found)


def _layers(model: Any) -> tuple[str, int]:
    try:
        name, layers = find_layers(model, model.config)
    except RecipeError:
        return "", 0
    return name, len(layers)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return model_description.LINEAR
    if is_conv1d(module):
        return model_description.CONV1D
    if isinstance(module, nn.Embedding):
        return model_description.EMBEDDING
    if isinstance(module, nn.modules.conv._ConvNd):
        return model_description.CONV
    if "Norm" in type(module).__name__:
        return model_description.NORM
    return model_description.OTHER


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What transformers logs as a warning or worse."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


if __name__ == "__main__":
    main()
