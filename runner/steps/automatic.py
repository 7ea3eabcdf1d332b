"""`bits: auto` and `sparsity: auto`: what each group of sites gets, from a measurement and a budget. Imports no torch.

    - analyze.sensitivity: {data: calibration}
      id: delicate
    - quantize.gptq: {data: calibration, bits: auto, sensitivity: delicate, budget: {average_bits: 3.5}}

Σ loss is least within a budget, or Σ cost within a limit on the forecast loss; runner/methods/knapsack.py solves that
exactly. Bits cost the bytes of the tensors in the format of the step, scales and zero points included, and sites that
servers fuse get the same; sparsities cost the weights that stay, and each site gets its own. The result is `overrides`,
or `per_layer`, by the names of modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from runner.contracts.context import Context
from runner.contracts.facts import CheckpointFacts
from runner.contracts.sensitivity import read
from runner.contracts.step_kind import Inputs, MachineFacts, Params
from runner.errors import Diagnostic
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Matrix
from runner.steps.assignment import (
    BITS,
    BUDGET,
    BYTES,
    CANDIDATES,
    LOSS,
    OWN,
    SENSITIVITY,
    SPARSITY,
    Assignment,
    Problem,
    assign,
    impossible,
    is_auto,
    losses,
    nearest,
    problem,
    target,
    with_choices,
)  # fmt: skip
from runner.steps.site_groups import groups
from runner.steps.targets import chosen, stored_scheme

_NOUNS = {BITS: "bits", SPARSITY: "sparsities"}


def environment(params: Params, machine: MachineFacts) -> dict[str, str]:
    """Return the version of the solver, which decides between assignments of equal loss."""
    from importlib.metadata import version

    return {"scipy": version("scipy")} if is_auto(params) else {}


def offered(params: Params, inputs: Inputs) -> tuple[float, ...]:
    """Return the candidates of a step: its own, or all that were measured."""
    return _offered(params, (inputs.others[SENSITIVITY].measured or {})[CANDIDATES])


def _offered(params: Params, measured: Mapping[str, Params]) -> tuple[float, ...]:
    given = params.get(CANDIDATES)
    return tuple(sorted(given or (each[target(params) or BITS] for each in measured.values())))


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return complaints about a step with `auto`, or about parameters of it where there is none."""
    found = _together(params)
    if found or not is_auto(params):
        return found
    return _settings(params, inputs) + _sites(params, inputs)


def check_budget(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return complaints about the budget of a step whose candidates can all be stored."""
    choices = problem(params, inputs.checkpoint, offered(params, inputs))
    return _budget(params, choices) + _loss(params, inputs, choices)


def _together(params: Params) -> list[Diagnostic]:
    wanted = target(params)
    given = [name for name in OWN if name in params]
    if wanted is None and given:
        name = BITS if BITS in params else SPARSITY
        message = f"`{given[0]}` belongs to `{name}: auto`, and `{name}` is {params[name]}"
        return [Diagnostic("R811", message, f"leave it out, or set `{name}: auto`", path=(given[0],))]
    if wanted is None:
        return []
    missing = [name for name in (SENSITIVITY, BUDGET) if name not in params]
    if missing:
        message = f"`{wanted}: auto` needs {' and '.join(f'`{name}`' for name in missing)}"
        budget = "{average_bits: 3.5}" if wanted == BITS else "{average_sparsity: 0.5}"
        help = f"name a step of `analyze.sensitivity`, and a budget such as `{budget}`"
        return [Diagnostic("R811", message, help, path=(wanted,))]
    if "scheme" in params:
        message = f"`bits: auto` chooses the bits of integers, and `scheme: {params['scheme']}` has its own"
        return [Diagnostic("R811", message, "leave one of them out", path=("scheme",))]
    return []


def _settings(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return complaints where a step and what it reads differ in how weights are stored."""
    measured: Mapping[str, Params] = (inputs.others[SENSITIVITY].measured or {})[CANDIDATES]
    wanted = str(target(params))
    one = next(iter(measured.values()))
    if wanted not in one:
        others, remedy = (
            ("bits", "measure `sparsities`") if wanted == SPARSITY else ("sparsities", "measure without `sparsities`")
        )
        message = f"`{wanted}: auto` assigns {_NOUNS[wanted]}, and `{params[SENSITIVITY]}` measured {others}"
        return [Diagnostic("R813", message, f"{remedy} in a step of its own", path=(SENSITIVITY,))]
    found = []
    unknown = [bits for bits in params.get(CANDIDATES, ()) if str(bits) not in measured]
    if unknown:
        known = ", ".join(measured)
        message = f"`candidates` has {unknown[0]}, and `{params[SENSITIVITY]}` measured {known}"
        found.append(Diagnostic("R813", message, "choose among those, or measure it too", path=(CANDIDATES,)))
    elif len(offered(params, inputs)) < 2:
        message = f"`{wanted}: auto` has one candidate, and nothing to choose"
        help = f"set `{wanted}: {offered(params, inputs)[0]:g}`, or give more candidates"
        found.append(Diagnostic("R813", message, help, path=(wanted,)))
    for name in ("group_size", "symmetric") if wanted == BITS else ():
        differing = {own[name] for own in chosen(params, inputs.checkpoint).values() if is_auto(own)} - {one[name]}
        if differing:
            value, there = (str(each).lower() for each in (min(differing, key=str), one[name]))
            message = f"`{name}` is {value}, and `{params[SENSITIVITY]}` measured with {there}"
            found.append(Diagnostic("R813", message, "give both steps the same", path=(name,)))
    return found


def _sites(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return complaints about modules that were not measured, and about parts of a group that has one loss."""
    facts = inputs.checkpoint
    reference, wanted = inputs.others[SENSITIVITY], str(target(params))
    shapes = {site.name: (site.rows, site.columns) for site in reference.sites}
    measured = frozenset((reference.measured or {})["sites"])
    free = [site for site, own in chosen(params, facts).items() if is_auto(own)]
    name = params[SENSITIVITY]
    if not free:
        why = "`overrides` give every module its bits" if wanted == BITS else "`per_layer` gives every module its own"
        message = f"`{wanted}: auto` assigns nothing: {why}"
        return [Diagnostic("R814", message, f"set `{wanted}` to a number", path=(wanted,))]
    unknown = [s.name for s in free if s.name not in measured or shapes[s.name] != (s.rows, s.columns)]
    if unknown:
        few = f"`{unknown[0]}`" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
        message = f"`{name}` did not measure {few}"
        help = "measure the checkpoint that this step takes, with the same `ignore`"
        return [Diagnostic("R814", message, help, path=(SENSITIVITY,))]
    taken = {site.name for site in free}
    whole = groups([site for site in reference.sites if site.name in measured], fused=wanted == BITS)
    for group in whole:
        inside = [site.name for site in group if site.name in taken]
        if inside and len(inside) < len(group):
            left = next(site.name for site in group if site.name not in taken)
            both = f"`{name}` measured `{inside[0]}` and `{left}` together"
            message = f"{both}, and only the first is assigned {_NOUNS[wanted]}"
            help = "servers store them alike: name both in `ignore` or `overrides`, or neither"
            if wanted == SPARSITY:
                help = "experts get one sparsity: name all in `ignore` or `per_layer`, or none"
            return [Diagnostic("R814", message, help, path=(wanted,))]
    return []


def _budget(params: Params, choices: Problem) -> list[Diagnostic]:
    """Return a complaint about a budget of size that nothing meets, or a warning about one that excludes nothing."""
    budget = params[BUDGET]
    if LOSS in budget:
        return []
    least, most = (sum(pick(row) for row in choices.costs) for pick in (min, max))
    limit = choices.limit(budget)
    key, value = next(iter(budget.items()))
    shown, path = value if key == BYTES else f"{value:g}", (BUDGET, key)
    if limit < least:
        takes, help = nearest(choices, key, least)
        message = f"`{key}: {shown}` is {_cheapest(choices)} {takes}"
        return [Diagnostic("R812", message, help, path=path)]
    if limit >= most:
        takes, _ = nearest(choices, key, most)
        if choices.target == SPARSITY:
            message = f"`{key}: {shown}` allows the least sparsity everywhere, which is {takes}"
        else:
            message = f"`{key}: {shown}` allows {max(choices.candidates):g} bits everywhere, which are {takes}"
        help = (
            f"set a budget {'above' if choices.target == SPARSITY else 'below'} that, or `{choices.target}` to a number"
        )
        return [Diagnostic("R815", message, help, path=path, severity="warning")]
    return []


def _cheapest(choices: Problem) -> str:
    if choices.target == SPARSITY:
        return f"more than any assignment has: {max(choices.candidates):g} everywhere is"
    return f"less than any assignment takes: {min(choices.candidates):g} bits everywhere are"


def _loss(params: Params, inputs: Inputs, choices: Problem) -> list[Diagnostic]:
    """Return a complaint about a limit on the loss that nothing meets, where the measurement is there already."""
    known = (inputs.others[SENSITIVITY].measured or {}).get("result")
    if LOSS not in params[BUDGET] or known is None:
        return []
    why = impossible(params, choices, losses(known, choices))
    return [Diagnostic("R812", *why, path=(BUDGET, LOSS))] if why else []


def planned(params: Params, inputs: Inputs) -> Params:
    """Return the params of a step as its cost and its result are planned.

    Before the measurement is there, every candidate is assigned to some groups: what reads the result must take each.
    """
    if not is_auto(params):
        return params
    choices = problem(params, inputs.checkpoint, offered(params, inputs))
    known = (inputs.others[SENSITIVITY].measured or {}).get("result")
    if known is not None:
        return with_choices(params, choices, assign(params, choices, known).choices)
    turns = len(choices.candidates)
    return with_choices(params, choices, [choices.candidates[place % turns] for place in range(len(choices.groups))])


def each_candidate(params: Params, inputs: Inputs) -> list[Params]:
    """Return the params of the step with every candidate everywhere."""
    own, wanted = {name: value for name, value in params.items() if name not in OWN}, str(target(params))
    return [{**own, wanted: each} for each in offered(params, inputs)]


def is_measured(params: Params, inputs: Inputs) -> bool:
    """Return whether the measurement of a step with `auto` is there already."""
    return is_auto(params) and (inputs.others[SENSITIVITY].measured or {}).get("result") is not None


def assignment(params: Params, inputs: Inputs) -> Mapping[str, Any]:
    """Return the assignment of a step whose measurement is there, as `Assignment.document` gives it."""
    choices = problem(params, inputs.checkpoint, offered(params, inputs))
    return assign(params, choices, (inputs.others[SENSITIVITY].measured or {})["result"]).document(choices)


def unsettled(params: Params, inputs: Inputs) -> frozenset[str]:
    """Return the tensors of the result whose shape is not known before the measurement is there."""
    if target(params) != BITS or (inputs.others[SENSITIVITY].measured or {}).get("result") is not None:
        return frozenset()
    free = (site for site, own in chosen(params, inputs.checkpoint).items() if is_auto(own))
    return frozenset(
        name
        for site in free
        for bits in offered(params, inputs)
        for name in formats.find(str(params["format"])).tensors(
            site.name, stored_scheme({**params, "bits": bits}), Matrix(site.rows, site.columns), "BF16"
        )
    )


def settled(ctx: Context, facts: CheckpointFacts) -> tuple[Params, dict[str, Any]]:
    """Return the params of a running step with what each module gets, and the assignment for the record."""
    if not is_auto(ctx.params):
        return ctx.params, {}
    measured = read(ctx.inputs[SENSITIVITY].path)
    choices = problem(ctx.params, facts, _offered(ctx.params, measured.candidates))
    found = assign(ctx.params, choices, measured)
    ctx.emit("message", level="info", text=_summary(choices, found))
    return with_choices(ctx.params, choices, found.choices), {"assignment": found.document(choices)}


def _summary(choices: Problem, found: Assignment) -> str:
    counts = Counter(found.choices)
    lost = f"forecast loss {found.loss:.4g}"
    if choices.target == SPARSITY:
        shares = ", ".join(f"{each:g} to {counts[each]}" for each in sorted(counts))
        return f"assigned sparsities of {shares}: {found.average:.3f} on average, {lost}"
    shares = ", ".join(f"{counts[each]} of {each:g} bits" for each in sorted(counts))
    return f"assigned {shares}: {found.average:.3f} bits a weight with scales, {lost}"
