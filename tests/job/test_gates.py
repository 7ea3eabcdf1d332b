from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.contracts.noise import Noise
from runner.job.gates import Samples, Verdict, judge

EARLIER = {"baseline": {"perplexity": 15.374, "zero": 0.0}}


@pytest.mark.parametrize(
    ("rule", "value", "passed", "text"),
    [
        ({"max": 15.55}, 15.5234, True, "`m` is 15.52, within its limit 15.55"),
        ({"max": 15.55}, 15.55, True, "`m` is 15.55, within its limit 15.55"),
        ({"max": 15.55}, 15.5501, False, "`m` is 15.5501, 0.0001 above its limit 15.55"),
        ({"max": 0.01}, 0.0123, False, "`m` is 0.0123, 0.0023 above its limit 0.01"),
        ({"min": 0.9}, 0.88, False, "`m` is 0.88, 0.02 below its limit 0.9"),
        ({"min": 0.9}, 0.9, True, "`m` is 0.9, within its limit 0.9"),
        ({"max": 12000}, 123456.7, False, "`m` is 123457, 111457 above its limit 12000"),
        ({"max": 0}, 0.25, False, "`m` is 0.25, 0.25 above its limit 0"),
        ({"max": 1}, math.inf, False, "`m` is inf, inf above its limit 1"),
        ({"max": 1}, math.nan, False, "`m` is nan and its limit 1: NaN passes no gate"),
        ({"min": 1}, math.nan, False, "`m` is nan and its limit 1: NaN passes no gate"),
    ],
)
def test_absolute_rules(rule: dict[str, Any], value: float, passed: bool, text: str) -> None:
    verdict = judge("m", rule, {"m": value}, {})
    assert (verdict.passed, verdict.text) == (passed, text)


def test_a_ratio_above() -> None:
    verdict = judge("perplexity", {"max_ratio_to": "baseline", "value": 1.25}, {"perplexity": 19.31}, EARLIER)
    assert verdict.text == "`perplexity` is 19.31, 0.09 above its limit 19.22 (1.25 × `baseline` 15.374)"
    assert verdict.rule == "at most 1.25 × `baseline`"
    assert not verdict.passed
    assert verdict.limit == 1.25 * 15.374


def test_a_ratio_below() -> None:
    verdict = judge("perplexity", {"min_ratio_to": "baseline", "value": 0.5}, {"perplexity": 7.5}, EARLIER)
    assert verdict.text == "`perplexity` is 7.5, 0.187 below its limit 7.687 (0.5 × `baseline` 15.374)"


def test_a_missing_metric_passes_no_gate() -> None:
    verdict = judge("perplexity", {"max_ratio_to": "nobody", "value": 1.25}, {"perplexity": 19.31}, EARLIER)
    assert verdict.text == "`perplexity` is 19.31 and its limit nan: NaN passes no gate (1.25 × `nobody`)"
    assert not verdict.passed


def test_nothing_is_accepted_yet() -> None:
    rule = {"max_ratio_to": "accepted", "value": 1.01}
    verdict = judge("perplexity", rule, {"perplexity": 19.31}, {"accepted": None})
    assert verdict.passed
    assert verdict.rule == "at most 1.01 × `accepted`"
    assert verdict.text == (
        "`perplexity` is 19.31; no job of this recipe is accepted yet, so there is nothing to compare it with"
    )
    assert not judge("perplexity", rule, {}, {"accepted": None}).passed


NUMBERS = st.floats(min_value=1e-6, max_value=1e6)


@given(value=NUMBERS, limit=NUMBERS)
def test_a_limit_is_kept_on_one_side_only(value: float, limit: float) -> None:
    above, below = judge("m", {"max": limit}, {"m": value}, {}), judge("m", {"min": limit}, {"m": value}, {})
    assert (above.passed, below.passed) == (value <= limit, value >= limit)
    assert above.passed or below.passed


@given(value=NUMBERS, base=NUMBERS, ratio=st.floats(min_value=0.1, max_value=10), reference=st.sampled_from(
    ["baseline", "accepted", "accepted/other", "job:a-3f9a/quality"]
))  # fmt: skip
def test_a_ratio_is_the_limit_times_what_it_refers_to(value: float, base: float, ratio: float, reference: str) -> None:
    for key, plain in (("max_ratio_to", "max"), ("min_ratio_to", "min")):
        relative = judge("m", {key: reference, "value": ratio}, {"m": value}, {reference: {"m": base}})
        absolute = judge("m", {plain: base * ratio}, {"m": value}, {})
        assert (relative.passed, relative.limit) == (absolute.passed, absolute.limit)
        assert relative.text.startswith(absolute.text)


LOSS = Noise("loss", exponential=True)
SURE = {"max_ratio_to": "baseline", "value": 1.02, "confidence": 0.95}


def losses(seed: int, shift: float, windows: int = 64) -> tuple[list[float], list[float]]:
    """Log-losses of windows of a model that is worse by `shift` on average, and of the one it is compared with."""
    draw = np.random.default_rng(seed)
    base = draw.normal(2.5, 0.5, windows)
    return list(base + draw.normal(shift, 0.02, windows)), list(base)


def judged(rule: Mapping[str, Any], own: list[float], base: list[float], noise: Noise = LOSS) -> Verdict:
    of = (lambda values: math.exp(np.mean(values))) if noise.exponential else np.mean
    earlier = {"baseline": {"m": float(of(base))}} if base else {}
    return judge("m", rule, {"m": float(of(own))}, earlier, Samples(noise, own, base or None))


def test_a_gate_that_flips_with_the_seed_is_not_decidable() -> None:
    """Samples of 64 windows of a loss at the limit: without a confidence half of them pass."""
    shift = math.log(1.02)
    points, verdicts = [], []
    for seed in range(40):
        own, base = losses(seed, shift)
        points.append(judged({**SURE, "confidence": 0.95}, own, base))
        verdicts.append(judge("m", {k: SURE[k] for k in ("max_ratio_to", "value")}, {"m": math.exp(np.mean(own))},
                              {"baseline": {"m": math.exp(np.mean(base))}}).passed)  # fmt: skip
    assert 10 <= sum(verdicts) <= 30
    assert sum(point.undecided for point in points) >= 36
    assert not any(point.undecided and point.passed for point in points)


def test_clear_differences_are_decided_although_windows_differ_by_far_more() -> None:
    good, bad = judged(SURE, *losses(0, 0.005)), judged(SURE, *losses(0, 0.04))
    assert (good.passed, good.undecided, bad.passed, bad.undecided) == (True, False, False, False)
    assert good.text == (
        "`m` is 12.67, within its limit 12.85 (1.02 × `baseline` 12.596); its 95 % interval is 12.61 to 12.74"
    )
    assert good.rule == "at most 1.02 × `baseline`, 0.95 sure"
    unpaired = judged({"max": 12.85, "confidence": 0.95}, losses(0, 0.005)[0], [])
    assert unpaired.undecided, "without the pairs the windows are too different"


def test_what_is_not_decidable_says_how_many_windows_would_do() -> None:
    own, base = losses(1, 0.017)
    verdict = judged(SURE, own, base)
    assert (verdict.passed, verdict.undecided) == (False, True)
    found = re.fullmatch(
        r"`m` is ([\d.]+), within its limit ([\d.]+) \(1.02 × `baseline` [\d.]+\), "
        r"which is not decidable with 64 windows: "
        r"its 95 % interval is ([\d.]+) to ([\d.]+); about ([\d,]+) would do", verdict.text,
    )  # fmt: skip
    assert found is not None
    enough = int(found[5].replace(",", ""))
    assert 64 < enough < 2000
    # More windows of the same kind: shifted so that the sample has the mean of the small one.
    more, other = losses(2, 0.0, enough)
    moved = [float(value + np.mean(own) - np.mean(base) - (np.mean(more) - np.mean(other))) for value in more]
    assert judged(SURE, moved, other).passed


@pytest.mark.parametrize("sign", [1, -1])
def test_means_and_their_ratios(sign: int) -> None:
    draw = np.random.default_rng(4)
    base = list(draw.gamma(4, 0.1, 80))
    own = [1.2 * value + float(draw.normal(0, 0.005)) for value in base]
    rule = {"max_ratio_to": "baseline", "value": 1.3} if sign > 0 else {"min_ratio_to": "baseline", "value": 1.1}
    assert judged({**rule, "confidence": 0.99}, own, base, Noise()).passed
    rule["value"] = 1.1 if sign > 0 else 1.3
    verdict = judged({**rule, "confidence": 0.99}, own, base, Noise())
    assert (verdict.passed, verdict.undecided) == (False, False)
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < verdict.value < verdict.high


def test_without_values_nothing_is_decided() -> None:
    for samples, text in (
        (None, "no values of single windows or questions were kept"),
        (Samples(LOSS, [1.0] * 4, [1.0] * 3), "its reference has 3 windows, not 4"),
    ):
        verdict = judge("perplexity", SURE, {"perplexity": 15.0}, EARLIER, samples)
        assert (verdict.passed, verdict.undecided) == (False, True)
        assert verdict.text.endswith(f", which is not decided: {text}")
