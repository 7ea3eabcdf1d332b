from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.job.gates import judge

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
