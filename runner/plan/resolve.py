"""Recipe → Plan: everything found, checked against the model's headers, and keyed. Nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, SAME, Kind, MachineFacts
from runner.errors import Diagnostic, MachineError, RecipeError
from runner.model.source import hub
from runner.plan import keys, lock, resolve_inputs
from runner.plan.facts_flow import FactsFlow
from runner.plan.machine import MachineRefusal, machine_facts, package_version, resolve_device
from runner.plan.tasks import find_tasks
from runner.plan.types import MODEL, Plan, PlannedStep, ResolvedData, ResolvedModel, ResolvedTasks
from runner.recipe import step_graph
from runner.recipe.schema import load
from runner.recipe.types import ModelSpec, Recipe, Step
from runner.steps import kinds


def resolve(
    recipe: Recipe,
    *,
    cache_file: Path | None = None,
    device: str = "auto",
    commits: Mapping[lock.Entry, str] | None = None,
) -> Plan:
    """The plan of a recipe: the same for the same recipe, model, data, packages and device, byte for byte.

    `cache_file` remembers digests and token counts; `commits` are those that a lock pins. RecipeError with every
    complaint of the first stage that has any (model and data, their lengths, steps against the model); MachineError
    for a device or a package that is not there.
    """
    resolved_device = resolve_device(device)
    references = {step.kind: load.references(step.kind) for step in recipe.steps}
    names = [
        str(step.params[parameter])
        for step in recipe.steps
        for parameter, target in references[step.kind].items()
        if target == "data" and step.params.get(parameter) is not None
    ]
    found, models, data = _found(recipe, names, cache_file, commits or {})
    resolve_inputs.check_lengths(recipe, found, data, cache_file)
    tasks = find_tasks(recipe, cache_file)
    given = {MODEL: found.model, **models}
    machine = machine_facts(resolved_device)
    planner = _Planner(recipe, given, data, tasks, environment(resolved_device), machine)
    facts = {id: model.facts for id, model in given.items()}
    flow = FactsFlow(facts, resolve_inputs.data_facts(found, data, cache_file), machine)
    complaints: list[Diagnostic] = []
    planned: list[PlannedStep] = []
    for step in recipe.steps:
        made = planner.plan(step, planned, references[step.kind])
        complaints += planner.complaints(step, made, planned)
        complaints += [d.at(recipe.step_span(step, d.path)) for d in flow.check(made)]
        flow.advance(made)
        planned.append(made)
    if complaints:
        raise RecipeError(complaints)
    _check_packages(recipe)
    key = keys.plan_key(recipe.name, found.model.digest, planned)
    return Plan(recipe, found.model, data, tuple(planned), key, resolved_device, models)


def with_model(plan: Plan) -> Plan:
    """The plan with its models on this machine: a Hub model that is not in the cache is downloaded at its commit."""
    return replace(
        plan, model=_downloaded(plan.model), models={id: _downloaded(model) for id, model in plan.models.items()}
    )


def _downloaded(model: ResolvedModel) -> ResolvedModel:
    if model.path is not None or model.commit is None:
        return model
    return replace(model, path=hub.download_model(model.source, model.commit))


def environment(device: str) -> dict[str, str]:
    """What of the installation decides the bytes of a result."""
    versions = {package: package_version(package) for package in ("torch", "transformers")}
    for package, version in versions.items():
        if version is None:
            raise MachineError(f"{package} is not installed", f"`pip install {package}`")
    return {**{package: str(version) for package, version in versions.items()}, "device": device}


def _found(
    recipe: Recipe, names: list[str], cache_file: Path | None, commits: Mapping[lock.Entry, str]
) -> tuple[resolve_inputs.Found, dict[str, ResolvedModel], dict[str, ResolvedData]]:
    """The model, those that single steps name, and the data; the complaints about all of them at once."""
    complaints: list[Diagnostic] = []
    found = None
    models: dict[str, ResolvedModel] = {}
    data: dict[str, ResolvedData] = {}

    def pinned(spec: ModelSpec) -> str | None:
        return commits.get(("models", lock.model_key(spec)))

    try:
        found = resolve_inputs.find_model(
            recipe.model, cache_file, recipe.span(("model", "source")), pinned(recipe.model)
        )
    except RecipeError as error:
        complaints += error.diagnostics
    for step in recipe.steps:
        for parameter, spec in step_graph.models_of(step).items():
            span = recipe.step_span(step, (parameter, "source"))
            try:
                models[f"{step.id}/{parameter}"] = resolve_inputs.find_model(spec, cache_file, span, pinned(spec)).model
            except RecipeError as error:
                complaints += error.diagnostics
    try:
        data = resolve_inputs.find_data(
            recipe, names, cache_file, lambda spec: commits.get(("data", lock.data_key(spec)))
        )
    except RecipeError as error:
        complaints += error.diagnostics
    if complaints or found is None:
        raise RecipeError(complaints)
    return found, models, data


@dataclass
class _Planner:
    """Turns steps into planned ones, in order."""

    recipe: Recipe
    models: Mapping[str, ResolvedModel]
    data: Mapping[str, ResolvedData]
    tasks: Mapping[str, Mapping[str, ResolvedTasks]]
    environment: Mapping[str, str]
    machine: MachineFacts

    def plan(self, step: Step, earlier: list[PlannedStep], references: Mapping[str, str]) -> PlannedStep:
        kind = kinds.find(step.kind)
        before = [s for s in self.recipe.steps if any(e.id == s.id for e in earlier)]
        inputs = {"checkpoint": step.source or step_graph.nearest(step.kind, before)}
        inputs |= {parameter: f"{step.id}/{parameter}" for parameter in step_graph.models_of(step)}
        data: dict[str, str] = {}
        for parameter, target in sorted(references.items()):
            value = step.params.get(parameter)
            if isinstance(value, str) and target in ("checkpoint", "engine", "data"):
                if target == "checkpoint":
                    value = step_graph.source_of(value, inputs["checkpoint"], {e.id: e.inputs for e in earlier})
                (data if target == "data" else inputs)[parameter] = value
        gates = {name for name, target in references.items() if target == "gates"}
        seed = keys.step_seed(self.recipe.seed, step.id)
        known = {e.id: e.key for e in earlier} | {id: model.digest for id, model in self.models.items()}
        processes = int(step.resources.get("processes", 1))
        tasks = self.tasks.get(step.id, {})
        packages = [need.package for need in kinds.requirements(kind, step.params)]
        needed = {package: str(package_version(package)) for package in packages}
        needed |= kinds.environment(kind, step.params, self.machine)
        key_inputs = keys.key_inputs(
            step,
            version=kind.VERSION,
            seed=seed,
            references=gates | set(inputs) | set(data) | set(tasks),
            inputs={parameter: known[id] for parameter, id in inputs.items()},
            data={parameter: self.data[name] for parameter, name in data.items()},
            environment={**self.environment, **needed},
            processes=processes,
            tasks=tasks,
        )
        return PlannedStep(
            index=len(earlier),
            id=step.id,
            kind=step.kind,
            kind_version=kind.VERSION,
            params={name: value for name, value in step.params.items() if name not in gates},
            seed=seed,
            inputs=inputs,
            data=data,
            consumes=tuple(kind.CONSUMES),
            produces=self._made(kind.PRODUCES, inputs["checkpoint"], earlier),
            gates={metric: rule for name in sorted(gates) for metric, rule in (step.params.get(name) or {}).items()},
            key=keys.sha256(key_inputs),
            key_inputs=key_inputs,
            folder=f"{len(earlier) + 1:02d}-{step.id}",
            processes=processes,
            tasks=tasks,
        )

    def _made(self, produces: str, source: str, earlier: list[PlannedStep]) -> str:
        return self._type(source, earlier) if produces == SAME else produces

    def _type(self, id: str, earlier: list[PlannedStep]) -> str:
        if id in self.models:
            return QUANTIZED if self.models[id].facts.quantization else CHECKPOINT
        return next(e.produces for e in earlier if e.id == id)

    def complaints(self, step: Step, made: PlannedStep, earlier: list[PlannedStep]) -> list[Diagnostic]:
        """Whether a step can take its input, where only the model's config tells the type."""
        if self._type(made.inputs["checkpoint"], earlier) in made.consumes:
            return []
        quantization = self.models[MODEL].facts.quantization
        if quantization and QUANTIZED not in made.consumes:
            method = quantization.get("quant_method", "by an unnamed method")
            message = f"`{step.kind}` takes an unquantized checkpoint; the model is already quantized ({method})"
            help = "start from the model as it was before it was quantized"
        else:
            message = f"`{step.kind}` takes a quantized checkpoint; the model is not quantized"
            help = "put a `quantize.` step before it, or start from a quantized model"
        return [Diagnostic("R449", message, help, self.recipe.step_span(step))]


def _check_packages(recipe: Recipe) -> None:
    missing: list[Diagnostic] = []
    for step in recipe.steps:
        kind: Kind = kinds.find(step.kind)
        for need in kinds.requirements(kind, step.params):
            if package_version(need.package) is None:
                message = f"`{step.kind}` needs the package {need.package}, which is not installed"
                help = f"`pip install 'runner[{need.extra}]'`"
                missing.append(Diagnostic("R503", message, help, recipe.step_span(step)))
    if missing:
        raise MachineRefusal(missing)
