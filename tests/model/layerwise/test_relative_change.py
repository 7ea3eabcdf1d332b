"""The change of a layer's output relative to what the layer adds, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from runner.model.layerwise.relative_change import relative_change


def test_it_is_the_norm_of_the_change_over_that_of_the_scale() -> None:
    expected, found, scale = torch.tensor([3.0, 0.0]), torch.tensor([3.0, 1.0]), torch.tensor([0.0, 4.0])
    assert relative_change(found, expected, scale) == pytest.approx(0.25)
    small = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    assert relative_change(small * 1.0078125, small, small) == pytest.approx(0.0078125)


def test_its_limits() -> None:
    zeros, ones = torch.zeros(2), torch.ones(2)
    assert relative_change(ones, ones, zeros) == 0
    assert relative_change(ones, zeros, zeros) == math.inf
    assert relative_change(torch.tensor([math.nan, 0.0]), zeros, ones) == math.inf
