"""Resolve a recipe into a plan: find models and data, check the steps against the headers, make keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner import wording
from runner.contracts.step_kind import METRICS_ONLY, DataFacts, MachineFacts
from runner.errors import Diagnostic, MachineError, RecipeError, Span
from runner.model.source import hub, unpacked
from runner.plan import environments, keys, lock, overlap, resolve_inputs, sensitivities, serving, wiring
from runner.plan.environments import Environment
from runner.plan.facts_flow import FactsFlow
from runner.plan.machine import MachineRefusal, package_version
from runner.plan.resources import Offer, candidates, device_of, machine_of
from runner.plan.tasks import find_tasks
from runner.plan.types import MODEL, UNPACKED, Plan, PlannedStep, ResolvedData, ResolvedModel, ResolvedTasks
from runner.plan.wiring import WiredStep
from runner.recipe import step_graph
from runner.recipe.compose.matrix import Combination, merge_complaints
from runner.recipe.schema import load
from runner.recipe.schema.validate import position
from runner.recipe.types import ModelSpec, Recipe
from runner.steps import kinds


def resolve(
    recipe: Recipe,
    *,
    cache_file: Path | None = None,
    device: str = "auto",
    commits: Mapping[lock.Entry, str] | None = None,
    offer: Offer | None = None,
) -> Plan:
    """Return the plan of a recipe: the same for the same recipe, model, data, packages and device, byte for byte.

    `cache_file` caches digests and token counts; `commits` are those that a lock pins; `offer` has the machines that
    will compute, where that is not this one: steps are checked against those. Raises RecipeError with every
    complaint about models, data and steps; steps that depend on something refused are not checked. Raises MachineError
    for a missing device or package.
    """
    resolved_device = device_of(offer, device)
    machine = machine_of(offer, resolved_device)
    made_with = environment(resolved_device)
    sources, complaints = _sources(recipe, cache_file, commits or {})
    wired, refused = wiring.wire(recipe, sources.models)
    flow = FactsFlow({id: model.facts for id, model in sources.models.items()}, sources.data_facts, machine)
    for step in wired:
        found = [refused[step.id]] if step.id in refused else flow.check(step)
        complaints += [d.at(d.span or recipe.step_span(step.step, d.path)) for d in found]
        if not any(d.severity == "error" for d in found):
            flow.advance(step)
            complaints += [d.at(recipe.step_span(step.step)) for d in flow.account(step)[1]]
    found_environments, about_environments = step_environments(recipe, commits or {})
    complaints += about_environments
    results = {step.id: facts for step in wired if (facts := flow.result(step)) is not None}
    served = serving.judge(recipe, results)
    if len(results) == sum(step.produces != METRICS_ONLY for step in wired):  # nothing was refused
        complaints += serving.check(recipe, results, served)
    complaints += _undecided(recipe, machine, offer)
    complaints += _missing_packages(recipe) + overlap.warnings(recipe, wired, sources.data)
    complaints += sensitivities.warnings(recipe, wired)
    _refuse([d for d in complaints if d.severity == "error"])
    planner = _Planner(recipe, sources, made_with, machine, found_environments, offer)
    planned: list[PlannedStep] = []
    for step in wired:
        known = replace(planner.plan(step, planned), sites=flow.sites(step), linears=flow.linears(step))
        planned.append(replace(known, account=flow.account(step)[0], trains=flow.trains(step)))
    model = sources.models[MODEL]
    key = keys.plan_key(recipe.name, model.digest, planned)
    others = {id: other for id, other in sources.models.items() if id != MODEL}
    warnings = tuple(d for d in complaints if d.severity != "error")
    return Plan(recipe, model, sources.data, tuple(planned), key, resolved_device, others, warnings, served)


def resolve_all(
    recipes: Sequence[Recipe], *, cache_file: Path | None, device: str, commits: Mapping[lock.Entry, str]
) -> list[Plan]:
    """Return the plans of all combinations of a matrix.

    Raises RecipeError with the complaints about all of them, each reported once.
    """
    plans: list[Plan] = []
    failed: list[tuple[Combination, Sequence[Diagnostic]]] = []
    for recipe in recipes:
        try:
            plans.append(resolve(recipe, cache_file=cache_file, device=device, commits=commits))
        except (RecipeError, MachineRefusal) as error:
            failed.append((dict(recipe.matrix), error.diagnostics))
    _refuse(merge_complaints(failed, len(recipes)))
    return plans


def _refuse(complaints: list[Diagnostic]) -> None:
    """Raise the complaints, if any: MachineRefusal where all are about the machine, else RecipeError."""
    if complaints:
        ordered = sorted(complaints, key=position)
        raise (MachineRefusal if all(d.code.startswith("R5") for d in complaints) else RecipeError)(ordered)


def with_model(plan: Plan) -> Plan:
    """Return the plan with its models on this machine: Hub models that are not cached are downloaded, and of weights in

    low precision the dense checkpoint is made that they stand for.
    """
    return replace(plan, model=_here(plan.model), models={id: _here(model) for id, model in plan.models.items()})


def _here(model: ResolvedModel) -> ResolvedModel:
    path = model.path
    if path is None and model.commit is not None:
        path = hub.download_model(model.source, model.commit, adapted=model.facts.adapter is not None)
    if path is not None and model.stored:
        path = unpacked.checkpoint(path, model.digest, model.source, model.facts.nbytes)
    return replace(model, path=path)


def environment(device: str) -> dict[str, str]:
    """Return the properties of the installation that influence the bytes of results."""
    versions = {package: package_version(package) for package in kinds.LIBRARIES}
    for package, version in versions.items():
        if version is None:
            raise MachineError(f"{package} is not installed", f"`pip install {package}`")
    return {**{package: str(version) for package, version in versions.items()}, "device": device}


@dataclass(frozen=True)
class _Sources:
    """The sources of a recipe that were found. `models` has its own as MODEL; `tasks` is by step and parameter."""

    models: Mapping[str, ResolvedModel]
    data: Mapping[str, ResolvedData]
    data_facts: Mapping[str, DataFacts]
    tasks: Mapping[str, Mapping[str, ResolvedTasks]]


def _sources(
    recipe: Recipe, cache_file: Path | None, commits: Mapping[lock.Entry, str]
) -> tuple[_Sources, list[Diagnostic]]:
    """Return the models, data and task files, and the complaints about all of them."""
    complaints: list[Diagnostic] = []

    def find(spec: ModelSpec, span: Span | None) -> resolve_inputs.Found | None:
        try:
            found = resolve_inputs.find_model(spec, cache_file, span, commits.get(("models", lock.model_key(spec))))
        except RecipeError as error:
            complaints.extend(error.diagnostics)
            return None
        complaints.extend(found.warnings)
        return found

    own = find(recipe.model, recipe.span(("model", "source")))
    models = {} if own is None else {MODEL: own.model}
    if own is not None and wiring.takes_dense(recipe):
        try:
            dense = resolve_inputs.find_unpacked(own.model)
            models |= {UNPACKED: dense} if dense is not None else {}
        except RecipeError as error:
            complaints.extend(d.at(d.span or recipe.span(("model", "source"))) for d in error.diagnostics)
    for step in recipe.steps:
        for parameter, spec in step_graph.models_of(step).items():
            other = find(spec, recipe.step_span(step, (parameter, "source")))
            if other is not None:
                models[f"{step.id}/{parameter}"] = other.model
    data, about_data = resolve_inputs.find_data(
        recipe, wiring.data_names(recipe), cache_file, lambda spec: commits.get(("data", lock.data_key(spec)))
    )
    facts: Mapping[str, DataFacts] = {}
    if own is not None:
        facts, about_lengths = resolve_inputs.measure_data(recipe, own, data, cache_file)
        about_data += about_lengths
    tasks, about_tasks = find_tasks(recipe, cache_file)
    return _Sources(models, data, facts, tasks), [*complaints, *about_data, *about_tasks]


@dataclass
class _Planner:
    """Builds planned steps from wired ones, in order."""

    recipe: Recipe
    sources: _Sources
    environment: Mapping[str, str]
    machine: MachineFacts
    environments: Mapping[str, Environment]
    offer: Offer | None = None

    def plan(self, wired: WiredStep, earlier: list[PlannedStep]) -> PlannedStep:
        step = wired.step
        kind = kinds.find(step.kind)
        gates = {name for name, target in load.references(step.kind).items() if target == "gates"}
        seed = keys.step_seed(self.recipe.seed, step.id)
        known = {e.id: e.key for e in earlier} | {id: model.digest for id, model in self.sources.models.items()}
        tasks = self.sources.tasks.get(step.id, {})
        packages = [need.package for need in kinds.requirements(kind, step.params)]
        idle = set(kinds.LIBRARIES) - set(kinds.libraries(kind))
        needed = {name: value for name, value in self.environment.items() if name not in idle}
        needed |= {package: str(package_version(package)) for package in packages}
        needed |= kinds.environment(kind, step.params, candidates(step, self.machine, self.offer)[0][1])
        own = self.environments.get(step.id)
        needed |= {"packages": own.digest} if own is not None else {}
        key_inputs = keys.key_inputs(
            step,
            version=kind.VERSION,
            seed=seed,
            references=gates | set(wired.inputs) | set(wired.data) | set(tasks),
            inputs={parameter: known[id] for parameter, id in wired.inputs.items()},
            data={parameter: self.sources.data[name] for parameter, name in wired.data.items()},
            environment=needed,
            processes=1 if kinds.is_divisible(step.kind) else wired.processes,
            tasks=tasks,
        )
        return PlannedStep(
            index=len(earlier),
            id=step.id,
            kind=step.kind,
            kind_version=kind.VERSION,
            params=wired.params,
            seed=seed,
            inputs=wired.inputs,
            data=wired.data,
            consumes=tuple(kind.CONSUMES),
            produces=wired.produces,
            gates={metric: rule for name in sorted(gates) for metric, rule in (step.params.get(name) or {}).items()},
            key=keys.sha256(key_inputs),
            key_inputs=key_inputs,
            folder=f"{len(earlier) + 1:02d}-{step.id}",
            processes=wired.processes,
            resources=step.resources,
            environment=own,
            tasks=tasks,
        )


def step_environments(
    recipe: Recipe, pinned: Mapping[lock.Entry, str]
) -> tuple[dict[str, Environment], list[Diagnostic]]:
    """Return the resolved environment of every foreign step by its id, as a lock pins them, and complaints."""
    found: dict[str, Environment] = {}
    complaints = []
    for step in recipe.steps:
        own = getattr(kinds.find(step.kind), "ENVIRONMENT", None)
        if own is None or not (own or step.env):
            continue
        wanted = environments.Wanted.of(recipe.environments[step.env]) if step.env else environments.Wanted(tuple(own))
        text = pinned.get(("environments", step.env or step.kind))
        try:
            found[step.id] = environments.resolve(wanted, json.loads(text) if text is not None else None)
        except MachineError as error:
            span = recipe.span(("environments", step.env)) if step.env else recipe.step_span(step)
            complaints.append(Diagnostic("R712", error.message, error.help, span))
    return found, complaints


def _undecided(recipe: Recipe, machine: MachineFacts, offer: Offer | None) -> list[Diagnostic]:
    """Return complaints about steps whose result, and key, would depend on which of several processors they meet."""
    found = []
    for step in recipe.steps:
        kind = kinds.find(step.kind)
        known = [(name, kinds.environment(kind, step.params, own)) for name, own in candidates(step, machine, offer)]
        if any(facts != known[0][1] for _, facts in known):
            models = wording.ticked([name for name, _ in known])
            message = f"what `{step.id}` makes depends on the processor, and machines that may run it have {models}"
            help = "name one, or an instruction set that only one has, with `resources: {processor: …}`"
            found.append(Diagnostic("R716", message, help, recipe.step_span(step)))
    return found


def _missing_packages(recipe: Recipe) -> list[Diagnostic]:
    missing: list[Diagnostic] = []
    for step in recipe.steps:
        for need in kinds.requirements(kinds.find(step.kind), step.params):
            if package_version(need.package) is None:
                message = f"`{step.kind}` needs the package {need.package}, which is not installed"
                help = f"`pip install 'runner[{need.extra}]'`"
                missing.append(Diagnostic("R503", message, help, recipe.step_span(step)))
    return missing
