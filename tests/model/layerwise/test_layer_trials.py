"""Trials of a layer: what they compare, and that arguments which a layer writes to stay as they were."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from runner.model.layerwise.layer_trials import Trial, as_float32, inputs_changed, outputs_changed, place


class Adds(nn.Module):
    """x + Wx, which also leaves Wx in `shared`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor, shared: dict[str, Any] | None = None) -> Any:
        added = self.linear(x)
        if shared is not None:
            shared["added"] = added
        return x + added, None


def trial(**kwargs: Any) -> Trial:
    return Trial(Adds().requires_grad_(False), 100 * torch.randn(1, 3, 4), ((), kwargs))


def test_divergence_is_relative_to_what_the_layer_adds() -> None:
    """The hidden states may be far larger."""
    one = trial()
    before = one.reference()
    assert before.divergence() == 0
    weight = one.layer.get_parameter("linear.weight")
    weight.mul_(1.01)
    assert before.divergence() == pytest.approx(0.01, rel=1e-3)
    weight.fill_(torch.nan)
    assert math.isinf(before.divergence())


def test_what_a_layer_leaves_in_its_arguments_counts_too() -> None:
    shared: dict[str, Any] = {}
    one = trial(shared=shared)
    assert [tuple(out.shape) for out in one.run()] == [(1, 3, 4), (1, 3, 4)]
    assert shared == {}


def test_divergence_in_another_basis() -> None:
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    one = trial()
    before = one.reference()
    weight = one.layer.get_parameter("linear.weight")
    weight.copy_(turn.T @ weight @ turn)
    assert before.divergence(lambda x: x @ turn) < 1e-5
    assert before.divergence() > 0.1


def test_changes_of_inputs_and_outputs_end() -> None:
    one = trial()
    plain = one.run()[0]
    linear = one.layer.get_submodule("linear")
    with outputs_changed(linear, lambda y: 2 * y), inputs_changed([linear], lambda x: x / 2):
        torch.testing.assert_close(one.run()[0], plain)
    with outputs_changed(linear, lambda y: 2 * y):
        assert not torch.allclose(one.run()[0], plain)
    assert torch.equal(one.run()[0], plain)


def test_arguments_become_float32_at_any_depth() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    args, kwargs = as_float32(((half,), {"a": (half, torch.ones(1, dtype=torch.int64)), "b": {"c": [half]}, "d": 3}),
                              torch.device("cpu"))  # fmt: skip
    assert args[0].dtype == kwargs["a"][0].dtype == kwargs["b"]["c"][0].dtype == torch.float32
    assert kwargs["a"][1].dtype == torch.int64
    assert kwargs["d"] == 3


def test_views_of_all_of_a_tensor_have_its_place() -> None:
    x = torch.zeros(2, 3, 4)
    assert place(x) == place(x.view(6, 4))
    assert place(x) != place(x[1:])
    assert place(x) != place(x.clone())
