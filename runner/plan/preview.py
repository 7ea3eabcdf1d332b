"""The preview of `apply`: what it would do and why, from the store, and what it would cost, from the headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from runner.contracts.step_kind import Cost
from runner.errors import Diagnostic, RecipeError
from runner.model.checkpoint.stored_types import stored_type
from runner.model.source import unpacked
from runner.plan import machine, resolve_inputs, resources
from runner.plan.facts_flow import FactsFlow
from runner.plan.reasons import Previous, reason
from runner.plan.types import Forecast, Plan, PlannedStep, Preview
from runner.recipe.types import Recipe

CACHE = "digests.json"  # in the store: digests and token counts
_NOTHING = Cost(0, 0, 0, 0.0)


class StoreView(Protocol):
    """The part of the step store that a preview uses."""

    @property
    def root(self) -> Path: ...

    def has(self, key: str) -> bool:
        """Return whether the step is committed and its files are unchanged."""
        ...

    def out(self, key: str) -> Path:
        """Return the folder with the files of a committed step."""
        ...

    def partial(self, key: str) -> tuple[int, int] | None:
        """Return (layers finished, layers) of an interrupted step."""
        ...

    def unit(self, key: str) -> str:
        """Return the unit that `partial` counts: "layer", or "step" of a training."""
        ...


def preview(
    plan: Plan, store: StoreView, previous: Previous | None = None, offer: resources.Offer | None = None
) -> Preview:
    """Return the forecast of every step.

    `previous` are the key inputs of the last job of this recipe's name, by step id; `offer` is what the executor has,
    by default this machine. Raises MachineRefusal (exit 4) where it lacks memory, disk or other resources for the steps
    that would run.
    """
    facts = resources.machine_of(offer, plan.device)
    found = resolve_inputs.Found(plan.model, plan.model.path)
    models = {id: model.facts for id, model in plan.given().items()}
    data, _ = resolve_inputs.measure_data(plan.recipe, found, plan.data, store.root / CACHE)
    flow = FactsFlow(models, data, facts)
    states: dict[str, str] = {}
    forecasts: list[Forecast] = []
    for step in plan.steps:
        done = None if store.has(step.key) else store.partial(step.key) or (0, 0)
        assignment = _assignment(plan, flow, step)
        state = "cached" if done is None else "resume" if done[0] > 0 else "run"
        cost = _NOTHING if done is None else _rest(flow.cost(step), done)
        flow.advance(step)
        if done is None:
            flow.found(step, store.out(step.key))
        forecast = Forecast(step, state, reason(step, state, states, previous), cost, assignment=assignment)
        if done is not None and done[0] > 0:
            at, unit = min(done[0] + 1, done[1]), store.unit(step.key)
            forecast = replace(forecast, resume_layer=at, layers=done[1], unit=unit)
        states[step.id] = state
        forecasts.append(forecast)
    result = Preview(plan, tuple(forecasts), facts, notes(plan, forecasts, facts.memory_available))
    complaints = refusals(result, machine.free_disk(store.root), store.root, offer or resources.of_this_machine(facts))
    if complaints:
        raise machine.MachineRefusal(complaints)
    return result


def _assignment(plan: Plan, flow: FactsFlow, step: PlannedStep) -> Mapping[str, Any] | None:
    """Return the bits that a step assigns, where its measurement is there. Raises RecipeError where none are possible.

    A plan is made without the store: a budget that only the measurement shows to be impossible is found here.
    """
    if not flow.is_measured(step):
        return None
    source = plan.recipe.steps[step.index]
    wrong = [d.at(plan.recipe.step_span(source, d.path)) for d in flow.check(step) if d.severity == "error"]
    if wrong:
        raise RecipeError(wrong)
    return flow.assignment(step)


def _rest(cost: Cost, done: tuple[int, int]) -> Cost:
    """Return the cost of the layers that are left."""
    layer, layers = done
    return replace(cost, seconds=cost.seconds * (layers - layer) / layers) if layers else cost


def notes(plan: Plan, forecasts: list[Forecast], available: int) -> tuple[str, ...]:
    """Return notes on what may go wrong or take longer than expected."""
    found = [_located(warning) for warning in (*plan.recipe.warnings, *plan.warnings)]
    found += [
        f"`{model.source}` is downloaded first: {gigabytes(model.facts.nbytes)}"
        for model in plan.given().values()
        if model.path is None
    ]
    found += [
        f"`{model.source}` is stored as {model.stored}; it is unpacked once, to {gigabytes(model.facts.nbytes)} of "
        f"{stored_type(model.facts)} in {unpacked.place(model.digest).parent}"
        for model in plan.given().values()
        if model.stored and not unpacked.place(model.digest).is_dir()
    ]
    found += [
        f"step `{f.step.id}` needs {gigabytes(f.cost.memory)} of memory; {gigabytes(available)} are free now"
        for f in forecasts
        if available < f.cost.memory
    ]
    return tuple(found)


def _located(warning: Diagnostic) -> str:
    return f"{warning.message} (line {warning.span.line})" if warning.span is not None else warning.message


def refusals(preview: Preview, free: int, folder: Path, offer: resources.Offer) -> list[Diagnostic]:
    """Return complaints about what the executor does not have, with what to lower.

    `free` bytes are free on the disk of `folder`.
    """
    recipe, has = preview.plan.recipe, max((node.memory for node in offer.nodes), default=0)
    found = []
    for forecast in preview.forecasts:
        need, step = forecast.cost.memory, forecast.step
        if need > has:
            message = f"step `{step.id}` needs {gigabytes(need)} of memory; {offer.name} has {gigabytes(has)}"
            source = recipe.steps[step.index]
            found.append(Diagnostic("R501", message, _lower(recipe, step), recipe.step_span(source)))
        elif forecast.state != "cached":
            found += _unavailable(preview.plan, step, need, offer)
    written = sum(forecast.cost.disk for forecast in preview.forecasts)
    scratch = max((forecast.cost.scratch for forecast in preview.forecasts), default=0)
    if written + scratch > free:
        message = (
            f"the steps write {gigabytes(written)} and need {gigabytes(scratch)} more while they run; "
            f"the disk of {folder} has {gigabytes(free)} free"
        )
        help = "free some space, remove old jobs with `runner jobs rm`, or choose another disk with `--jobs FOLDER`"
        found.append(Diagnostic("R502", message, help))
    return found


def _unavailable(plan: Plan, step: PlannedStep, memory: int, offer: resources.Offer) -> list[Diagnostic]:
    """Return the complaint about `resources` of a step that no machine of the offer has; `memory` is the forecast."""
    if not step.resources.keys() - {"processes"}:
        return []
    lack = resources.lacking(resources.demand_of(step, plan.device, memory), offer)
    if lack is None:
        return []
    path, clause = lack
    source = plan.recipe.steps[step.index]
    code = "R702" if path[:1] in (("custom",), ("processor",)) else "R701"
    span = plan.recipe.span((*source.path, "resources", *path))
    help = "ask for less, or use an executor that has it (`--executor`)"
    return [Diagnostic(code, f"step `{step.id}` {clause}", help, span)]


def _lower(recipe: Recipe, step: PlannedStep) -> str:
    """Return advice on which parameters to change so that a step needs less memory."""
    data = {name: recipe.data[name] for name in sorted(set(step.data.values()))}
    if "gradient_accumulation" in step.params:
        return _lower_training(step.params, {name: spec.sequence_length for name, spec in data.items()})
    parts = [f"`batch_size` (now {step.params['batch_size']})"] if "batch_size" in step.params else []
    for name, spec in data.items():
        samples = "all of the text" if spec.samples is None else str(spec.samples)
        parts.append(f"`samples` (now {samples}) or `sequence_length` (now {spec.sequence_length}) of data `{name}`")
    if not parts:
        return "use a machine with more memory; what one layer needs cannot be lowered"
    return "lower " + ", ".join(parts)


def _lower_training(params: Mapping[str, Any], lengths: Mapping[str, int]) -> str:
    accumulation, batch = params["gradient_accumulation"], params["batch_size"]
    ways = [f"raise `gradient_accumulation` (now {accumulation})", f"lower `batch_size` (now {batch})"]
    if not params["gradient_checkpointing"]:
        ways.append("set `gradient_checkpointing: true`")
    ways += [f"lower `sequence_length` (now {length}) of data `{name}`" for name, length in lengths.items()]
    return "; ".join(ways)


def gigabytes(count: int) -> str:
    """Return bytes as text: 41.2 GB, 0.35 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.2f} GB"
