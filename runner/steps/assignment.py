"""The assignment of bits or sparsities to groups of sites: what each candidate costs and loses, and the best choice.

Bits cost the bytes of the tensors in the format of the step, scales and zero points included; a sparsity costs the
weights that stay. Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from runner.contracts.facts import DTYPE_BYTES, CheckpointFacts
from runner.contracts.sensitivity import Sensitivity
from runner.contracts.sites import Site
from runner.contracts.step_kind import Params
from runner.errors import StepFailed
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Matrix
from runner.steps.site_groups import groups
from runner.steps.targets import chosen, stored_scheme

AUTO = "auto"
BITS, SPARSITY = "bits", "sparsity"
SENSITIVITY, BUDGET, CANDIDATES = OWN = ("sensitivity", "budget", "candidates")
AVERAGE, AVERAGE_SPARSITY, BYTES, LOSS = "average_bits", "average_sparsity", "bytes", "max_loss"
_MODULES = {BITS: "overrides", SPARSITY: "per_layer"}  # the parameter with the values of some modules
_PER_MILLE = 1000  # sparsities are multiples of a thousandth, so that costs are integers and sums exact


def target(params: Params) -> str | None:
    """Return what a step assigns to modules: BITS, SPARSITY, or None."""
    return next((name for name in (BITS, SPARSITY) if params.get(name) == AUTO), None)


def is_auto(params: Params) -> bool:
    return target(params) is not None


@dataclass(frozen=True)
class Problem:
    """The choices of a step. `costs` is group → candidate → cost.

    Of BITS a cost is in bytes; `fixed` are the bytes of all other tensors that the step writes, and `own` 8 times those
    of modules with bits of their own. Of SPARSITY it is in thousandths of a weight that stays; `own` is that of modules
    with a sparsity of their own. `weights` are those of all modules that the step changes.
    """

    target: str
    groups: tuple[tuple[Site, ...], ...]
    candidates: tuple[float, ...]
    costs: tuple[tuple[int, ...], ...]
    weights: int
    own: int
    fixed: int = 0

    def limit(self, budget: Params) -> float:
        """Return what a budget of a size or of a sparsity leaves to the groups."""
        if AVERAGE_SPARSITY in budget:
            return math.floor(_PER_MILLE * self.weights * (1 - Fraction(str(budget[AVERAGE_SPARSITY])))) - self.own
        if AVERAGE in budget:
            return math.floor((float(budget[AVERAGE]) * self.weights - self.own) / 8)
        from runner.model.checkpoint.writer import parse_size

        return parse_size(budget[BYTES]) - self.fixed

    def average(self, cost: int) -> float:
        """Return the average bits, or the average sparsity, where the groups cost `cost`."""
        if self.target == SPARSITY:
            return 1 - (cost + self.own) / (_PER_MILLE * self.weights)
        return (8 * cost + self.own) / self.weights


@dataclass(frozen=True)
class Assignment:
    """The bits or sparsity of each group, by its position; the forecast loss, the average, and the cost."""

    choices: tuple[float, ...]
    loss: float
    unit: str
    average: float
    cost: int

    def document(self, problem: Problem) -> dict[str, Any]:
        """Return the assignment as records, plans and locks have it: bits or sparsity by module."""
        by_site = {site.name: each for group, each in zip(problem.groups, self.choices, strict=True) for site in group}
        average = {f"average_{problem.target}": round(self.average, 4)}
        size = {"bytes": problem.fixed + self.cost} if problem.target == BITS else {}
        return {problem.target: by_site, "loss": self.loss, "unit": self.unit, **average, **size}


def problem(params: Params, facts: CheckpointFacts, candidates: Sequence[float]) -> Problem:
    """Return the choices that a step of `bits: auto` or `sparsity: auto` has on a checkpoint."""
    wanted = target(params) or BITS
    cost = _bytes if wanted == BITS else _remaining
    own = chosen(params, facts)
    grouped = groups([site for site, settings in own.items() if is_auto(settings)], fused=wanted == BITS)
    costs = tuple(
        tuple(sum(cost(site, {**own[site], wanted: each}, facts) for site in group) for each in candidates)
        for group in grouped
    )
    settled = sum(cost(site, settings, facts) for site, settings in own.items() if not is_auto(settings))
    weights = sum(site.size for site in own)
    if wanted == SPARSITY:
        return Problem(wanted, grouped, tuple(candidates), costs, weights, settled)
    changed = {site.tensor for site in own}
    rest = sum(tensor.nbytes for name, tensor in facts.tensors.items() if name not in changed)
    return Problem(wanted, grouped, tuple(candidates), costs, weights, 8 * settled, rest + settled)


def _remaining(site: Site, params: Params, facts: CheckpointFacts) -> int:
    """Return the thousandths of weights of a site that stay."""
    return int(site.size * (_PER_MILLE - round(_PER_MILLE * float(params[SPARSITY]))))


def _bytes(site: Site, params: Params, facts: CheckpointFacts) -> int:
    """Return the bytes of the tensors that a site becomes."""
    dtype = facts.tensors[site.tensor].dtype
    matrix = Matrix(site.rows, site.columns, site.transposed and site.index is None, dtype)
    new = formats.find(str(params["format"])).tensors(site.name, stored_scheme(params), matrix, dtype)
    return sum(DTYPE_BYTES[stored] * math.prod(shape) for stored, shape in new.values())


def nearest(choices: Problem, key: str, cost: int) -> tuple[str, str]:
    """Return what an assignment that costs `cost` is in the terms of a budget, and advice to allow it."""
    if key == AVERAGE_SPARSITY:
        share = f"{math.floor(choices.average(cost) * 1000 + 1e-9) / 1000:g}"
        return share, f"set `{key}` to {share} or less, or measure larger sparsities"
    if key == AVERAGE:
        bits = math.ceil(choices.average(cost) * 1000 - 1e-9) / 1000
        return (
            f"{bits:g} with their scales",
            f"set `average_bits` to {bits:g} or more, or give fewer bits as candidates",
        )
    size = choices.fixed + cost
    text = f"{math.ceil(size / 1e4) / 100:.2f}MB"
    return f"{text} with everything else", f"set `{key}` to {text} or more, or give fewer bits as candidates"


def impossible(params: Params, choices: Problem, lost: Sequence[Sequence[float]]) -> tuple[str, str] | None:
    limit, least = params[BUDGET][LOSS], math.fsum(map(min, lost))
    if least <= limit:
        return None
    shown = f"{math.ceil(least * 1e6) / 1e6:g}"
    milder = "more bits" if choices.target == BITS else "less sparsity"
    return (
        f"`max_loss: {limit:g}` is less than any assignment loses: the best loses {shown}",
        f"set `max_loss` to {shown} or more, or measure candidates with {milder}",
    )


def losses(measured: Sensitivity, choices: Problem) -> list[list[float]]:
    """Return the loss of each group under each candidate."""
    by_site = {name: group for group in measured.groups for name in group.sites}
    return [[by_site[group[0].name].losses[f"{each:g}"] for each in choices.candidates] for group in choices.groups]


def assign(params: Params, choices: Problem, measured: Sensitivity) -> Assignment:
    """Return the best assignment. Raises StepFailed where none meets a limit on the loss."""
    from runner.methods import knapsack

    lost, budget = losses(measured, choices), params[BUDGET]
    if LOSS in budget:
        found = knapsack.choose(choices.costs, lost, budget[LOSS])
        if found is not None:  # of those as small, the one that loses least
            spent = sum(row[option] for row, option in zip(choices.costs, found, strict=True))
            found = knapsack.choose(lost, choices.costs, spent)
    else:
        found = knapsack.choose(lost, choices.costs, choices.limit(budget))
    if found is None:
        why = impossible(params, choices, lost)
        raise StepFailed(*(why or ("no assignment meets the budget", "raise it")))
    cost = sum(row[option] for row, option in zip(choices.costs, found, strict=True))
    return Assignment(
        tuple(choices.candidates[option] for option in found),
        math.fsum(row[option] for row, option in zip(lost, found, strict=True)),
        measured.unit,
        choices.average(cost),
        cost,
    )


def with_choices(params: Params, choices: Problem, chosen: Sequence[float]) -> dict[str, Any]:
    """Return the params of a step with the choice of each group written out: an ordinary step, without `auto`."""
    wanted = choices.target
    usual = Counter(each for group, each in zip(choices.groups, chosen, strict=True) for _ in group).most_common(1)[0][
        0
    ]
    modules = dict(params.get(_MODULES[wanted], {}))
    for group, each in zip(choices.groups, chosen, strict=True):
        if each != usual:
            modules |= {name: {BITS: each} if wanted == BITS else each for name in _patterns(group)}
    own = {name: value for name, value in params.items() if name not in OWN}
    return {**own, wanted: usual, _MODULES[wanted]: modules}


def _patterns(group: Sequence[Site]) -> list[str]:
    """Return patterns of the sites of a group: their names, or one of all experts of a layer."""
    if group[0].is_expert:
        return [f"{group[0].expert.rpartition('.')[0]}.*"]
    return [site.name for site in group]
