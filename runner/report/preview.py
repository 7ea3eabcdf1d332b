"""The text of `runner plan`, and the first lines of `runner apply`: steps, reasons and costs."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from runner.plan.types import Forecast, Preview
from runner.progress import units
from runner.report import assigned_bits, tensor_account
from runner.report.table import table

STYLES = {"cached": "green", "run": "", "resume": "cyan"}


def lines(preview: Preview, width: int) -> list[Text]:
    """Return the lines of a plan: a heading, a row for every step, totals, notes."""
    rows: list[list[Text | str]] = [["#", "step", "kind", "state", "memory", "disk", "time", "reason"]]
    for number, forecast in enumerate(preview.forecasts, 1):
        step = forecast.step
        rows.append([str(number), step.id, Text(step.kind, "dim"), *_costs(forecast), forecast.reason])
    return [
        *heading(preview, width),
        Text(),
        *table(rows, width, ">" + "<" * 3 + ">" * 3 + "<", head=True),
        *_tensors(preview),
        *_trained(preview),
        *_assignments(preview),
        *_served(preview),
        Text(),
        *_totals(preview),
        *(Text(f"note: {note}", "yellow") for note in preview.notes),
    ]


def _tensors(preview: Preview) -> list[Text]:
    """Return the account of tensors of each step, one line each."""
    accounts = [(f.step.id, f.step.account.document()) for f in preview.forecasts if f.step.account is not None]
    return [Text(), *(Text(f"{id}: {tensor_account.line(found)}", "dim") for id, found in accounts)] if accounts else []


def _trained(preview: Preview) -> list[Text]:
    """Return what each step trains, one line each, of the kinds that say so."""
    known = [(forecast.step.id, forecast.step.trains) for forecast in preview.forecasts if forecast.step.trains]
    return [Text(), *(Text(f"{id}: trains {what}", "dim") for id, what in known)] if known else []


def _assignments(preview: Preview) -> list[Text]:
    """Return the bits that steps assign, where that is known, one line each."""
    known = [(forecast.step.id, forecast.assignment) for forecast in preview.forecasts if forecast.assignment]
    return [Text(), *(Text(f"{id}: {assigned_bits.line(found)}", "dim") for id, found in known)] if known else []


def _served(preview: Preview) -> list[Text]:
    """Return how the servers of `serve` load each artifact, one line each."""
    served = preview.plan.served
    return [Text(), *(Text(f"{each.step}: {each.verdict.describe()}", "dim") for each in served)] if served else []


def short(preview: Preview, width: int) -> list[Text]:
    """Return the lines that apply prints: only the steps that compute something, totals, notes."""
    rows = [
        [f.step.id, Text(f.step.kind, "dim"), *_costs(f), f.reason] for f in preview.forecasts if f.state != "cached"
    ]
    steps = table([["step", "kind", "state", "memory", "disk", "time", "reason"], *rows], width, "<<<>>><", head=True)
    return [
        *heading(preview, width),
        *(steps if rows else []),
        *_totals(preview),
        *(Text(f"note: {note}", "yellow") for note in preview.notes),
    ]


def heading(preview: Preview, width: int) -> list[Text]:
    """Return the heading: the job, the model and the device."""
    plan, facts = preview.plan, preview.plan.model.facts
    lines = [Text(plan.job_id, "bold")]
    lines += table([[Text(plan.recipe.description, "dim")]], width, indent=0) if plan.recipe.description else []
    size = f"{units.count(facts.parameters)} parameters, {units.size(facts.nbytes)}"
    layers = f"{units.plural(facts.layer_count, 'layer')}, " if facts.layer_count else ""
    return [*lines, Text(f"{plan.model.source}: {facts.architecture}, {layers}{size}; {_device(preview)}")]


def document(preview: Preview) -> dict[str, Any]:
    """Return the document of `runner plan --json`."""
    costs = [f.cost for f in preview.forecasts if f.state != "cached"]
    return {
        "schema": 1,
        "job": preview.plan.job_id,
        "key": preview.plan.key,
        "recipe": preview.plan.recipe.name,
        "device": preview.plan.device,
        "model": {
            "source": preview.plan.model.source,
            "commit": preview.plan.model.commit,
            "digest": preview.plan.model.digest,
            "bytes": preview.plan.model.facts.nbytes,
            "parameters": preview.plan.model.facts.parameters,
        },
        "steps": [_step(f) for f in preview.forecasts],
        "totals": {
            "memory": max((c.memory for c in costs), default=0),
            "disk": sum(c.disk for c in costs),
            "scratch": max((c.scratch for c in costs), default=0),
            "seconds": sum(c.seconds for c in costs),
        },
        "machine": {
            "cpus": preview.machine.cpus,
            "memory": preview.machine.memory,
            "memory_available": preview.machine.memory_available,
            "device_memory": preview.machine.device_memory,
            "gpu": preview.machine.gpu_name,
        },
        "served": [
            {
                "step": each.step,
                "server": each.verdict.server,
                "how": each.verdict.how,
                "why": each.verdict.why,
                "source": each.verdict.source,
            }
            for each in preview.plan.served
        ],
        "notes": list(preview.notes),
    }


def _step(forecast: Forecast) -> dict[str, Any]:
    step, cost = forecast.step, forecast.cost
    return {
        "id": step.id, "kind": step.kind, "key": step.key, "state": forecast.state, "reason": forecast.reason,
        "resume_layer": forecast.resume_layer, "layers": forecast.layers, "unit": forecast.unit, "memory": cost.memory,
        "disk": cost.disk, "scratch": cost.scratch, "seconds": cost.seconds,
        "assignment": None if forecast.assignment is None else dict(forecast.assignment),
        "trains": step.trains or None,
        "tensors": step.account.document() if step.account is not None else None,
    }  # fmt: skip


def state(forecast: Forecast) -> str:
    """Return the state as `cached`, `run`, `resume at layer 17/32` or `resume at step 121/400`."""
    if forecast.state == "resume" and forecast.resume_layer is not None:
        return f"resume at {forecast.unit} {forecast.resume_layer}/{forecast.layers}"
    return forecast.state


def _costs(forecast: Forecast) -> list[Text | str]:
    cell = Text(state(forecast), STYLES.get(forecast.state, ""))
    if forecast.state == "cached":
        return [cell, "", "", ""]
    cost = forecast.cost
    return [cell, units.size(cost.memory), units.size(cost.disk) if cost.disk else "", units.about(cost.seconds)]


def _totals(preview: Preview) -> list[Text]:
    """Return the number of steps by state, and the memory, disk and time that they need."""
    counts = {name: sum(f.state == name for f in preview.forecasts) for name in ("run", "resume", "cached")}
    if counts["cached"] == len(preview.forecasts):
        return [Text(f"nothing to run: {_all(len(preview.forecasts))} cached", "green")]
    words = {"run": "to run", "resume": "to resume", "cached": "cached"}
    summary = ", ".join(f"{counts[name]} {words[name]}" for name in words if counts[name])
    todo = [f.cost for f in preview.forecasts if f.state != "cached"]
    memory, disk = max(c.memory for c in todo), sum(c.disk for c in todo) + max(c.scratch for c in todo)
    line = Text(f"{summary}; ")
    tight = memory > preview.machine.memory_available > 0
    line.append(
        f"peak memory {units.size(memory)} of {units.size(preview.machine.memory_available)} available",
        "bold yellow" if tight else "",
    )
    line.append(f", {units.size(disk)} of disk, {units.about(sum(c.seconds for c in todo))}")
    return [line]


def _all(count: int) -> str:
    return "its one step is" if count == 1 else f"all {count} steps are"


def _device(preview: Preview) -> str:
    machine = preview.machine
    if machine.device == "cpu":
        return f"on the CPU ({units.plural(machine.cpus, 'core')})"
    return f"on {machine.gpu_name or machine.device}"
