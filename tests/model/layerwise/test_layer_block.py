"""A layer with gradients: its error and gradients against a copy of the layer in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from runner.model.checkpoint.quantization.scheme import Numbers
from runner.model.layerwise.activation_rounding import round_inputs
from runner.model.layerwise.forward_modes import Lane
from runner.model.layerwise.layer_block import LayerBlock

WIDTH = 16
SPANS = [(0, 2), (2, 4), (4, 5)]


class Layer(nn.Module):
    """Two linears with a residual, called with a further argument."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> Any:
        return (x + scale * self.down(torch.tanh(self.up(x))),)


class Fixture:
    """A block, what flows into it, and what should come out of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = Layer().requires_grad_(False)
        self.inputs, self.targets = torch.randn(5, 7, WIDTH), torch.randn(5, 7, WIDTH)
        lane = Lane(
            self.layer,
            lambda start, stop: self.inputs[start:stop],
            lambda start, hidden: None,
            lambda span: ((), {"scale": 0.5}),
        )
        linears = {"model.up": self.layer.up, "model.down": self.layer.down}
        self.block = LayerBlock(3, lane, lambda start, stop: self.targets[start:stop], SPANS, linears)

    def naive(self, start: int, stop: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum over tokens of the relative squared errors of some windows and its gradients, in float64."""
        layer = copy.deepcopy(self.layer).double().requires_grad_(True)
        with torch.enable_grad():
            out = layer(self.inputs[start:stop].double(), scale=0.5)[0]
            target = self.targets[start:stop].double()
            loss = ((out - target).square().sum(-1) / target.square().sum(-1)).sum()
            loss.backward()
        return loss.detach(), {"model.up": _gradient(layer.up), "model.down": _gradient(layer.down)}


def _gradient(linear: nn.Linear) -> torch.Tensor:
    assert linear.weight.grad is not None
    return linear.weight.grad


def test_the_error_of_a_token_is_relative_to_what_should_come_out() -> None:
    own = Fixture()
    with torch.no_grad():
        found = own.block.loss([0, 2])
    expected = (own.naive(0, 2)[0] + own.naive(4, 5)[0]) / (3 * 7)
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert (own.block.index, own.block.batches) == (3, 3)


def test_gradients_are_those_of_the_squared_error_up_to_one_factor() -> None:
    own = Fixture()
    factors = []
    with torch.no_grad():
        for batches, spans in (([1], [(2, 4)]), ([0, 2], [(0, 2), (4, 5)])):
            found = own.block.gradients(batches)
            expected = [own.naive(*span)[1] for span in spans]
            for name, gradient in found.items():
                whole = torch.stack([each[name] for each in expected]).sum(0)
                factors.append(float((gradient.double() * whole).sum() / whole.square().sum()))
                torch.testing.assert_close(gradient.double(), factors[-1] * whole, rtol=1e-4, atol=1e-6)
    assert factors == [pytest.approx(factors[0], rel=1e-4)] * 4


def test_parameters_may_be_written_and_nothing_stays_on_the_layer() -> None:
    own = Fixture()
    with torch.no_grad():
        own.block.gradients([0])
        own.block.parameter("model.up").zero_()
        own.block.round_inputs("model.down", Numbers("int8", "token"))
        own.block.close()
    assert not own.layer.up.weight.any()
    assert not any(p.requires_grad or p.grad is not None for p in own.layer.parameters())
    assert not own.layer.down._forward_pre_hooks


def test_rounded_inputs_change_the_output_and_pass_gradients_on() -> None:
    own = Fixture()
    numbers = Numbers("int4", "token")
    with torch.no_grad():
        own.block.round_inputs("model.down", numbers)
        own.block.round_inputs("model.up", numbers)
        error = own.block.loss([0])
        up = own.layer.up.forward(round_inputs(own.inputs[:2], numbers))
        out = own.inputs[:2] + 0.5 * own.layer.down.forward(round_inputs(torch.tanh(up), numbers))
        wanted = ((out - own.targets[:2]).square().sum(-1) / own.targets[:2].square().sum(-1)).mean()
        gradients = own.block.gradients([0])
    assert error == pytest.approx(float(wanted), rel=1e-4)
    assert gradients["model.up"].count_nonzero() == gradients["model.up"].numel()
