"""The multiple-choice knapsack: one option for each group, the least loss within a budget, exactly. Imports no torch.

    minimize Σ_g Σ_c x_gc · loss_gc   subject to   Σ_g Σ_c x_gc · cost_gc ≤ budget,   Σ_c x_gc = 1,   x_gc ∈ {0, 1}

It is solved as an integer program by HiGHS (Huangfu and Hall 2018) through scipy. HiGHS computes with tolerances: a
solution that exceeds the budget in exact arithmetic is excluded, and the program solved again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import reduce

Table = Sequence[Sequence[float]]  # group → option → number; integers are compared exactly, floats by exact sums
_SCALE = 1e4  # of the largest sum of an objective, far above HiGHS's absolute gap of 1e-6


def choose(losses: Table, costs: Table, budget: float) -> tuple[int, ...] | None:
    """Return for each group the number of its option, so that Σ loss is least among those with Σ cost ≤ `budget`.

    None where even the cheapest options cost more. All numbers are finite and not negative. With losses and costs
    exchanged it is the cheapest choice within a limit on the loss.
    """
    cheapest = [min(range(len(row)), key=lambda c: (row[c], losses[g][c])) for g, row in enumerate(costs)]
    if not within(costs, cheapest, budget):
        return None
    best = [min(range(len(row)), key=lambda c: (row[c], costs[g][c])) for g, row in enumerate(losses)]
    if within(costs, best, budget):
        return tuple(best)
    return _solve(losses, costs, budget)


def within(costs: Table, choice: Sequence[int], budget: float) -> bool:
    """Return whether a choice costs no more than `budget`, in exact arithmetic."""
    total = sum((Fraction(row[option]) for row, option in zip(costs, choice, strict=True)), Fraction())
    return total <= Fraction(budget)


def _solve(losses: Table, costs: Table, budget: float) -> tuple[int, ...]:
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(row) for row in losses]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    objective = np.array([value - min(row) for row in losses for value in row], dtype=float)
    largest = sum(max(row) - min(row) for row in losses)
    weights, room = _scaled(costs, budget)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    rules = [LinearConstraint(one_each, 1, 1), LinearConstraint(np.array(weights)[None], -np.inf, room)]
    while True:
        found = milp(
            objective * (_SCALE / largest if largest else 1.0), constraints=rules, integrality=np.ones(len(groups)),
            bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        if found.x is None:
            raise ArithmeticError(f"HiGHS solved no assignment: {found.message}")
        x = np.asarray(found.x)
        choice = tuple(int(x[a:b].argmax()) for a, b in itertools.pairwise(starts))
        if within(costs, choice, budget):
            return choice
        taken = np.zeros(len(groups))
        taken[[start + option for start, option in zip(starts, choice, strict=False)]] = 1
        rules.append(LinearConstraint(taken[None], -np.inf, len(sizes) - 1))


def _scaled(costs: Table, budget: float) -> tuple[list[float], float]:
    """Return the costs above the cheapest option of each group, and what is left for them, in a convenient unit.

    Integers are divided by their greatest common divisor, so that HiGHS sees small ones; floats are scaled.
    """
    least = [min(row) for row in costs]
    above = [value - base for row, base in zip(costs, least, strict=True) for value in row]
    room = Fraction(budget) - sum(map(Fraction, least))
    if all(isinstance(value, int) for value in above):
        unit = reduce(math.gcd, map(int, above)) or 1
        return [int(value) // unit for value in above], float(math.floor(room / unit))
    scale = _SCALE / max(*above, float(room))
    return [value * scale for value in above], float(room) * scale
