"""Make the worker's request for a planned step, with the folders of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runner.contracts.lineage import Lineage
from runner.contracts.step_kind import CHECKPOINT, QUANTIZED
from runner.errors import MachineError
from runner.execute import missed_gates
from runner.execute.messages import DataRef, InputRef, Request
from runner.execute.settings import ApplySettings
from runner.job.entries import StoreEntry
from runner.plan import lineages, resources
from runner.plan.types import MODEL, Plan, PlannedStep, ResolvedModel
from runner.recipe import secrets
from runner.recipe.syntax import yaml_text
from runner.steps import kinds


def request(
    plan: Plan, step: PlannedStep, entries: Mapping[str, StoreEntry], store: Path, settings: ApplySettings
) -> Request:
    """Make the request for one step. `entries`: the results of the steps before it, by id."""
    document = plan.recipe.document
    used = {MODEL, *step.inputs.values()}
    given = {id: _given(model, lineages.lineage_of(plan, id)) for id, model in plan.given().items() if id in used}
    return Request(
        index=step.index,
        id=step.id,
        kind=step.kind,
        kind_version=step.kind_version,
        key=step.key,
        key_inputs=step.key_inputs,
        params=step.params,
        step=lineages.applied_step(plan, step),
        seed=step.seed,
        device=plan.device,
        threads=resources.threads_of(step, settings.thread_count),
        store=str(store),
        recipe=plan.recipe.name,
        recipe_text=published(document),
        inputs={
            name: replace(
                given[id] if id in given else _made(entries[id], lineages.lineage_of(plan, id)),
                sites=step.sites.get(name),
                linears=step.linears.get(name),
            )
            for name, id in step.inputs.items()
        },
        data={parameter: _data(plan, name) for parameter, name in step.data.items()},
        produces=step.produces,
        tokenizer=str(plan.model.path),
        command=settings.command,
        tasks={name: {entry: str(path) for entry, path in found.paths.items()} for name, found in step.tasks.items()},
        processes=step.processes,
        environment=step.environment.document() if step.environment is not None else None,
        limits={
            metric: float(rule["max"])
            for metric, rule in step.gates.items()
            if "max" in rule and rule.get("on_miss", missed_gates.STOP) == missed_gates.STOP
        },
        account=step.account.document() if step.account else None,
        written=step.account.written if step.account else None,
        unchanged=step.account.unchanged() if step.account else (),
    )


def published(document: Mapping[str, Any]) -> str:
    """Return the recipe as model cards show it: without secrets, and without resources, which change no result."""
    hidden = secrets.hide(document, secrets.values(document))
    if "steps" in hidden:
        hidden = {**hidden, "steps": [_without_resources(step) for step in hidden["steps"]]}
    return yaml_text.dump(hidden)


def _without_resources(step: Mapping[str, Any]) -> dict[str, Any]:
    asked = step.get("resources", {})
    divisible = any(kinds.is_divisible(key) for key in step if "." in key)
    deciding = {name: value for name, value in asked.items() if name == "processes" and not divisible}
    rest = {name: value for name, value in step.items() if name != "resources"}
    return {**rest, "resources": deciding} if deciding else rest


def _given(model: ResolvedModel, lineage: Lineage) -> InputRef:
    if model.path is None:
        raise MachineError(
            f"the model `{model.source}` is not on this machine", "download it first, or give a folder instead"
        )
    return InputRef(str(model.path), QUANTIZED if model.facts.quantization else CHECKPOINT, model.digest, lineage)


def _made(entry: StoreEntry, lineage: Lineage) -> InputRef:
    return InputRef(str(entry.out), entry.record.artifact_type, entry.record.digest, lineage)


def _data(plan: Plan, name: str) -> DataRef:
    found = plan.data[name]
    return DataRef(asdict(found.spec), tuple(str(file) for file in found.files), found.digest, found.bytes)
