"""Quality gates: judge a rule against metrics, as passed, missed or undecided, with a sentence. Pure functions.

A rule is one of {max: x}, {min: x}, {max_ratio_to: reference, value: r}, {min_ratio_to: reference, value: r}; a ratio
is to the same metric of an earlier step, or of a step of another job (runner.recipe.references). With a `confidence`
the verdict is that of an interval of the metric, paired with the reference window by window or question by question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.contracts.noise import Noise
from runner.job import intervals


@dataclass(frozen=True)
class Verdict:
    """`value` and `limit` are NaN where a metric is missing; `rule` is the rule in words, `text` a full sentence.

    `on_miss` is that of the rule: what a missed gate stops. With a `confidence`, `low` and `high` are the bounds of the
    metric's interval, and `undecided` is true where the limit is between them: the gate is not passed then.
    """

    metric: str
    value: float
    limit: float
    rule: str
    passed: bool
    text: str
    on_miss: str = "stop"
    undecided: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Samples:
    """The values of which a metric is made, and those of the reference of a ratio; None where there are none."""

    noise: Noise
    own: Sequence[float] | None = None
    reference: Sequence[float] | None = None


def judge(
    metric: str,
    rule: Mapping[str, Any],
    metrics: Mapping[str, float],
    earlier: Mapping[str, Mapping[str, float] | None],
    samples: Samples | None = None,
) -> Verdict:
    """Judge one gate. `earlier`: reference of a ratio, as the rule writes it → metrics.

    None means that the reference does not exist yet (the accepted job of a recipe that is applied for the first time):
    the gate passes. `samples` are wanted where the rule has a `confidence`.
    """
    value = float(metrics.get(metric, math.nan))
    upper = "max" in rule or "max_ratio_to" in rule
    reference = rule.get("max_ratio_to", rule.get("min_ratio_to"))
    word = "at most" if upper else "at least"
    on_miss = str(rule.get("on_miss", "stop"))
    if reference is None:
        limit, origin = float(rule["max" if upper else "min"]), ""
        words = f"{word} {limit:g}"
    elif reference in earlier and earlier[reference] is None:
        words = f"{word} {rule['value']:g} × `{reference}`"
        text = f"`{metric}` is {value:g}; no job of this recipe is accepted yet, so there is nothing to compare it with"
        if math.isnan(value):
            text = f"`{metric}` is nan: NaN passes no gate"
        return Verdict(metric, value, math.nan, words, not math.isnan(value), text, on_miss)
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
    verdict = Verdict(metric, value, limit, words, passed, text, on_miss)
    if "confidence" not in rule or math.isnan(value) or math.isnan(limit):
        return verdict
    return _with_interval(verdict, rule, upper, samples)


def _with_interval(verdict: Verdict, rule: Mapping[str, Any], upper: bool, samples: Samples | None) -> Verdict:
    """Return the verdict that the interval of the metric allows."""
    confidence = float(rule["confidence"])
    rule_text = f"{verdict.rule}, {confidence:.4g} sure"
    if samples is None or not samples.own:
        text = f"{verdict.text}, which is not decided: no values of single windows or questions were kept"
        return replace(verdict, rule=rule_text, passed=False, undecided=True, text=text)
    ratio = float(rule["value"]) if "value" in rule else None
    unit, count = samples.noise.unit, len(samples.own)
    if ratio is not None and len(samples.reference or ()) != count:
        others = len(samples.reference or ())
        text = f"{verdict.text}, which is not decided: its reference has {others} {unit}, not {count}"
        return replace(verdict, rule=rule_text, passed=False, undecided=True, text=text)
    values, limit = _decisive(verdict, samples, ratio)
    ends = ((-ratio, 1.0) if ratio is not None else (0.0, 0.0, 1.0, 1.0)) if samples.noise.is_share else ()
    found = intervals.interval(values, confidence, ends=ends)
    low, high = (_in_metric(bound, verdict, samples.noise, ratio) for bound in found)
    within, beyond = (found[1] <= limit, found[0] > limit) if upper else (found[0] >= limit, found[1] < limit)
    places = _decimals(verdict.value, verdict.limit)
    interval = f"its {100 * confidence:.4g} % interval is {_short(low, places)} to {_short(high, places)}"
    verdict = replace(verdict, rule=rule_text, passed=within, low=low, high=high)
    if within or beyond:
        return replace(verdict, text=f"{verdict.text}; {interval}")
    enough = _enough(values, limit, found)
    advice = f"about {enough} would do" if enough is not None else "no number of them would do"
    text = f"{verdict.text}, which is not decidable with {count} {unit}: {interval}; {advice}"
    return replace(verdict, undecided=True, text=text)


def _decisive(verdict: Verdict, samples: Samples, ratio: float | None) -> tuple[list[float], float]:
    """Return values, one for each window, whose mean decides the gate, and its limit.

    exp(mean a) ≤ r exp(mean b) where mean(a − b) ≤ log r; mean a ≤ r mean b where mean(a − r b) ≤ 0.
    """
    own, other = list(samples.own or ()), list(samples.reference or ())
    if ratio is None:
        limit = verdict.limit
        return own, (math.log(limit) if limit > 0 else -math.inf) if samples.noise.exponential else limit
    if samples.noise.exponential:
        return [a - b for a, b in zip(own, other, strict=True)], math.log(ratio)
    return [a - ratio * b for a, b in zip(own, other, strict=True)], 0.0


def _in_metric(bound: float, verdict: Verdict, noise: Noise, ratio: float | None) -> float:
    """Return a bound of the decisive mean as a value of the metric."""
    if noise.exponential:
        return math.exp(min(bound, 700.0)) * (verdict.limit / ratio if ratio is not None else 1.0)
    return bound + (verdict.limit if ratio is not None else 0.0)


def _enough(values: Sequence[float], limit: float, interval: tuple[float, float]) -> str | None:
    """Return with how many values the interval would leave out the limit: it shrinks with their square root."""
    mean = math.fsum(values) / len(values)
    distance, width = abs(mean - limit), (interval[1] - mean) if mean < limit else (mean - interval[0])
    if distance == 0 or not math.isfinite(width / distance):
        return None
    count = math.ceil(len(values) * (width / distance) ** 2)
    digits = max(0, len(str(count)) - 2)
    return f"{math.ceil(count / 10**digits) * 10**digits:,}" if count < 10**9 else None


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
