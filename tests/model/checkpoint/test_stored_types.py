"""The type of a checkpoint is that of most of its floating values."""

from __future__ import annotations

import pytest

from runner.contracts.facts import TensorHeader
from runner.model.checkpoint.stored_types import main_type


@pytest.mark.parametrize(("tensors", "expected"), [
    ([("BF16", (8, 8)), ("F32", (8,)), ("I32", (64, 64))], "bfloat16"),
    ([("F16", (4,)), ("F32", (4,))], "float32"),
    ([("F16", (5,)), ("F32", (4,)), ("F64", ())], "float16"),
    ([("I8", (4,))], "float32"),
])  # fmt: skip
def test_most_values_decide(tensors: list[tuple[str, tuple[int, ...]]], expected: str) -> None:
    headers = [TensorHeader(str(i), dtype, shape, "s", 0, 0) for i, (dtype, shape) in enumerate(tensors)]
    assert main_type(headers) == expected
