"""Schemes: the short form of integers, what they share scales over, and how they are described."""

from __future__ import annotations

import re
from typing import Any

import pytest

from runner.model.checkpoint.quantization.scheme import Numbers, Scheme, integers

FP8 = Numbers("float8_e4m3", "channel")


def test_the_short_form_is_integer_weights() -> None:
    scheme = integers(4, 128, False)
    assert scheme == Scheme(Numbers("int4", 128, "weights", False), None)
    assert (scheme.bits, scheme.group_size, scheme.symmetric, scheme.strategy) == (4, 128, False, "group")
    assert scheme.is_integer
    assert not Scheme(scheme.weights, Numbers("int8", "token")).is_integer
    assert not Scheme(FP8).is_integer


@pytest.mark.parametrize(
    ("layout", "shape", "columns"),
    [
        ("tensor", (1, 1), 300), ("channel", (200, 1), 300), (128, (200, 3), 128), ((128, 128), (2, 3), 128),
    ],
)  # fmt: skip
def test_what_shares_a_scale(layout: Any, shape: tuple[int, int], columns: int) -> None:
    numbers = Numbers("float8_e4m3", layout)
    assert numbers.scale_shape(200, 300) == shape
    assert numbers.columns(300) == columns
    assert numbers.groups(300) == shape[1]


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (integers(4, 128, True), "4-bit, symmetric, groups of 128"),
        (integers(8, "channel", False), "8-bit, asymmetric, per channel"),
        (Scheme(Numbers("float8_e4m3", (128, 128))), "float8_e4m3, blocks of 128 × 128"),
        (
            Scheme(FP8, Numbers("float8_e4m3", "token")),
            "float8_e4m3, per channel; inputs dynamically to float8_e4m3, per token",
        ),
        (
            Scheme(FP8, Numbers("int8", "tensor"), dynamic=False),
            "float8_e4m3, per channel; inputs with calibrated scales to 8-bit, symmetric, per tensor",
        ),
    ],
)
def test_descriptions(scheme: Scheme, text: str) -> None:
    assert scheme.describe() == text


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            ("int9", "channel"),
            (
                "element must be one of int2, int3, int4, int5, int6, int7, int8, float8_e4m3, float4_e2m1, "
                "nf4, fp4, log2; got 'int9'"
            ),
        ),
        (("int4", "row"), "layout must be a number, a pair or one of tensor, channel, token; got 'row'"),
        (("int4", 16, "int8"), "scale must be one of weights, float8_e4m3, float8_e8m0; got 'int8'"),
    ],
)
def test_what_is_no_scheme(numbers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Numbers(*numbers)
