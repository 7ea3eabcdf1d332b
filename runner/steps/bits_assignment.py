"""The assignment of bits to groups of sites: what each candidate costs and loses, and the best within a budget.

Bytes are those of the tensors in the format of the step, scales and zero points included. Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
SENSITIVITY, BUDGET, CANDIDATES = OWN = ("sensitivity", "budget", "candidates")
AVERAGE, BYTES, LOSS = "average_bits", "bytes", "max_loss"


def is_auto(params: Params) -> bool:
    return params.get("bits") == AUTO


@dataclass(frozen=True)
class Problem:
    """The choices of a step. `costs` is group → candidate → bytes; `fixed` the bytes of all other tensors it writes.

    `weights` and `fixed_bits` are of the modules that the step quantizes, the second of those with bits of their own.
    """

    groups: tuple[tuple[Site, ...], ...]
    candidates: tuple[int, ...]
    costs: tuple[tuple[int, ...], ...]
    fixed: int
    weights: int
    fixed_bits: int

    def limit(self, budget: Params) -> float:
        """Return the bytes that a budget of `average_bits` or `bytes` leaves to the groups."""
        if AVERAGE in budget:
            return math.floor((float(budget[AVERAGE]) * self.weights - self.fixed_bits) / 8)
        from runner.model.checkpoint.writer import parse_size

        return parse_size(budget[BYTES]) - self.fixed

    def average(self, cost: int) -> float:
        """Return the average bits where the groups take `cost` bytes."""
        return (8 * cost + self.fixed_bits) / self.weights


@dataclass(frozen=True)
class Assignment:
    """The bits of each group, by the position of the group; the forecast loss, and what it takes."""

    bits: tuple[int, ...]
    loss: float
    unit: str
    average_bits: float
    bytes: int

    def document(self, problem: Problem) -> dict[str, Any]:
        """Return the assignment as records, plans and locks have it: bits by module."""
        by_site = {site.name: bits for group, bits in zip(problem.groups, self.bits, strict=True) for site in group}
        return {
            "bits": by_site, "loss": self.loss, "unit": self.unit, "average_bits": round(self.average_bits, 4),
            "bytes": self.bytes,
        }  # fmt: skip


def problem(params: Params, facts: CheckpointFacts, candidates: Sequence[int]) -> Problem:
    """Return the choices that a step of `bits: auto` has on a checkpoint."""
    own = chosen(params, facts)
    free = [site for site, settings in own.items() if is_auto(settings)]
    grouped = groups(free)
    costs = tuple(
        tuple(sum(_bytes(site, {**own[site], "bits": bits}, facts) for site in group) for bits in candidates)
        for group in grouped
    )
    settled = {site: settings for site, settings in own.items() if not is_auto(settings)}
    settled_bytes = sum(_bytes(site, settings, facts) for site, settings in settled.items())
    changed = {site.tensor for site in own}
    rest = sum(tensor.nbytes for name, tensor in facts.tensors.items() if name not in changed)
    weights = sum(site.size for site in own)
    return Problem(grouped, tuple(candidates), costs, rest + settled_bytes, weights, 8 * settled_bytes)


def _bytes(site: Site, params: Params, facts: CheckpointFacts) -> int:
    """Return the bytes of the tensors that a site becomes."""
    dtype = facts.tensors[site.tensor].dtype
    matrix = Matrix(site.rows, site.columns, site.transposed and site.index is None, dtype)
    new = formats.find(str(params["format"])).tensors(site.name, stored_scheme(params), matrix, dtype)
    return sum(DTYPE_BYTES[stored] * math.prod(shape) for stored, shape in new.values())


def nearest(choices: Problem, key: str, cost: int) -> tuple[str, str]:
    """Return what an assignment that takes `cost` bytes is in the terms of a budget, and advice to allow it."""
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
    return (
        f"`max_loss: {limit:g}` is less than any assignment loses: the best loses {shown}",
        f"set `max_loss` to {shown} or more, or measure candidates with more bits",
    )


def losses(measured: Sensitivity, choices: Problem) -> list[list[float]]:
    """Return the loss of each group under each candidate."""
    by_site = {name: group for group in measured.groups for name in group.sites}
    return [[by_site[group[0].name].losses[str(bits)] for bits in choices.candidates] for group in choices.groups]


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
        choices.fixed + cost,
    )


def with_bits(params: Params, choices: Problem, bits: Sequence[int]) -> dict[str, Any]:
    """Return the params of a step with the bits of each group as `overrides`: an ordinary step, without `auto`."""
    usual = Counter(each for group, each in zip(choices.groups, bits, strict=True) for _ in group).most_common(1)[0][0]
    overrides = {name: dict(changes) for name, changes in params.get("overrides", {}).items()}
    for group, each in zip(choices.groups, bits, strict=True):
        if each != usual:
            overrides |= {pattern: {"bits": each} for pattern in _patterns(group)}
    own = {name: value for name, value in params.items() if name not in OWN}
    return {**own, "bits": usual, "overrides": overrides}


def _patterns(group: Sequence[Site]) -> list[str]:
    """Return patterns of the sites of a group: their names, or one of all experts of a layer."""
    if group[0].is_expert:
        return [f"{group[0].expert.rpartition('.')[0]}.*"]
    return [site.name for site in group]
