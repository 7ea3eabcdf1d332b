"""Quality gates: judge a rule against metrics, as passed or missed with a sentence. Pure functions.

A rule is one of {max: x}, {min: x}, {max_ratio_to: reference, value: r}, {min_ratio_to: reference, value: r}; a ratio
is to the same metric of an earlier step, or of a step of another job (runner.recipe.references).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """`value` and `limit` are NaN where a metric is missing; `rule` is the rule in words, `text` a full sentence."""

    metric: str
    value: float
    limit: float
    rule: str
    passed: bool
    text: str


def judge(
    metric: str,
    rule: Mapping[str, Any],
    metrics: Mapping[str, float],
    earlier: Mapping[str, Mapping[str, float] | None],
) -> Verdict:
    """Judge one gate. `earlier`: reference of a ratio, as the rule writes it → metrics.

    None means that the reference does not exist yet (the accepted job of a recipe that is applied for the first time):
    the gate passes.
    """
    value = float(metrics.get(metric, math.nan))
    upper = "max" in rule or "max_ratio_to" in rule
    reference = rule.get("max_ratio_to", rule.get("min_ratio_to"))
    word = "at most" if upper else "at least"
    if reference is None:
        limit, origin = float(rule["max" if upper else "min"]), ""
        words = f"{word} {limit:g}"
    elif reference in earlier and earlier[reference] is None:
        words = f"{word} {rule['value']:g} × `{reference}`"
        text = f"`{metric}` is {value:g}; no job of this recipe is accepted yet, so there is nothing to compare it with"
        if math.isnan(value):
            text = f"`{metric}` is nan: NaN passes no gate"
        return Verdict(metric, value, math.nan, words, not math.isnan(value), text)
    else:
        base = float((earlier.get(reference) or {}).get(metric, math.nan))
        limit = base * float(rule["value"])
        origin = f"{rule['value']:g} × `{reference}`"
        words = f"{word} {origin}"
    passed = value <= limit if upper else value >= limit  # NaN passes no gate
    text = _sentence(metric, value, limit, passed, upper)
    if reference is not None and not math.isnan(limit):
        text += f" ({origin} {_short(base, _decimals(value, limit) + 1)})"
    elif reference is not None:
        text += f" ({origin})"
    return Verdict(metric, value, limit, words, passed, text)


def _sentence(metric: str, value: float, limit: float, passed: bool, upper: bool) -> str:
    if math.isnan(value) or math.isnan(limit):
        return f"`{metric}` is {value:g} and its limit {limit:g}: NaN passes no gate"
    places = _decimals(value, limit)
    shown, bound = _short(value, places), _short(limit, places)
    if passed:
        return f"`{metric}` is {shown}, within its limit {bound}"
    gap = _short(abs(value - limit), places)
    return f"`{metric}` is {shown}, {gap} {'above' if upper else 'below'} its limit {bound}"


def _decimals(value: float, limit: float) -> int:
    """Return the decimal places that show four digits of the limit, and at least one of the distance to it."""
    if not (math.isfinite(value) and math.isfinite(limit)):
        return 3
    places = 3 - math.floor(math.log10(abs(limit))) if limit else 3
    if gap := abs(value - limit):
        places = max(places, -math.floor(math.log10(gap)))
    return min(12, max(0, places))


def _short(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
