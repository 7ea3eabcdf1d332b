"""Quantized weights: their checks, and dequantization against the readers' arithmetic written out naively."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import integers


def weight(**changes: Any) -> Quantized:
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "codes": torch.randint(0, 16, (6, 40), dtype=torch.uint8, generator=generator),
        "scale": torch.rand(6, 3, generator=generator).to(torch.float16),
        "zero_point": torch.randint(0, 16, (6, 3), dtype=torch.uint8, generator=generator),
        "numbers": integers(4, 16, False).weights,
    }  # fmt: skip
    return Quantized(**(values | changes))


def naive(q: Quantized) -> torch.Tensor:
    """scale · (q − z), element by element: exact integers, one rounding to the dtype of the scale."""
    out = torch.empty(q.integers.shape, dtype=q.scale.dtype)
    for row in range(q.out_features):
        for column in range(q.in_features):
            group = column // q.group_size if q.groups is None else int(q.groups[column])
            where = (0, 0) if q.strategy == "tensor" else (row, group)
            zero = 2 ** (q.bits - 1) if q.zero_point is None else int(q.zero_point[where])
            exact = q.scale[where].double() * (int(q.integers[row, column]) - zero)
            out[row, column] = exact.to(q.scale.dtype)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"zero_point": None, "numbers": integers(4, 16, True).weights},
        {
            "numbers": integers(4, 8, False).weights, "scale": torch.rand(6, 5),
            "zero_point": torch.full((6, 5), 3, dtype=torch.uint8),
        },
        {"numbers": integers(4, "channel", True).weights, "scale": torch.rand(6, 1), "zero_point": None},
        {"numbers": integers(4, "tensor", True).weights, "scale": torch.rand(1, 1), "zero_point": None},
        {
            "numbers": integers(8, "tensor", False).weights, "scale": torch.rand(1, 1),
            "zero_point": torch.full((1, 1), 255, dtype=torch.uint8),
        },
        {"groups": torch.arange(40).flip(0) // 16},
        {"groups": torch.arange(40).flip(0) // 16, "zero_point": None, "numbers": integers(4, 16, True).weights},
    ],
    ids=[
        "short last group", "symmetric", "groups", "channel", "tensor", "tensor, asymmetric", "groups in any order",
        "symmetric groups in any order",
    ],
)  # fmt: skip
def test_dequantize_rounds_once_in_the_dtype_of_the_scale(changes: dict[str, Any], dtype: torch.dtype) -> None:
    q = weight(**changes)
    q = weight(**changes | {"scale": q.scale.to(dtype)})
    assert torch.equal(q.dequantize(dtype), naive(q))
    assert q.dequantize(torch.float32).dtype == torch.float32


def test_dequantize_leaves_the_integers_alone() -> None:
    q = weight()
    before = q.codes.clone()
    q.dequantize(torch.float32)
    assert torch.equal(q.codes, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.zeros(6, 40)}, "codes must be uint8 [out, in], not torch.float32 (6, 40)"),
        ({"scale": torch.rand(6, 2)}, "scale must be floating [6, 3], not (6, 2)"),
        ({"scale": torch.rand(3, 6)}, "scale must be floating [6, 3], not (3, 6)"),
        ({"zero_point": torch.zeros(6, 3)}, "zero_point must be uint8 [6, 3], not torch.float32 (6, 3)"),
        ({"zero_point": None}, "symmetric numbers have no zero_point, and asymmetric ones have one"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        weight(**changes)
