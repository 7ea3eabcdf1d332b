"""What rounding some linears does to the block around them, against the same computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from runner.model.layerwise.block_trials import BlockTrial, Round, Rounding, common_module
from runner.model.layerwise.layer_trials import Trial


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8, bias=False)

    def forward(self, x: torch.Tensor, *, factor: float) -> torch.Tensor:
        out: torch.Tensor = self.down(torch.tanh(self.gate(x)) * self.up(x)) * factor
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.mlp = nn.RMSNorm(8), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.mlp(self.norm(x), factor=2.0)
        return out


def coarse(values: torch.Tensor) -> torch.Tensor:
    return (values * 4).round() / 4


def share(change: torch.Tensor, before: torch.Tensor, given: list[Trial]) -> float:
    """Squares of a change over those of what was, tokens by the inverse square of their size in the layer's output."""
    weigh = 1 / torch.cat([trial.layer(trial.hidden) for trial in given]).square().sum(-1)
    return float((change.square().sum(-1) * weigh).sum() / (before.square().sum(-1) * weigh).sum())


ROUNDING = Rounding(coarse)
SCALES = torch.linspace(0.5, 2, 8)


def trials(tokens: int = 20) -> list[Trial]:
    layer = Layer().requires_grad_(False)
    return [Trial(layer, torch.randn(1, tokens, 8), ((), {})) for _ in range(2)]


@pytest.mark.parametrize("scales", [None, SCALES], ids=["plain", "scaled"])
@pytest.mark.parametrize("inputs", [None, coarse], ids=["weights", "inputs too"])
def test_the_error_of_a_block(scales: torch.Tensor | None, inputs: Round | None) -> None:
    given = trials()
    layer = given[0].layer
    assert isinstance(layer, Layer)
    block = layer.mlp
    xs = torch.cat([layer.norm(trial.hidden) for trial in given])
    before = block(xs, factor=2.0)
    rounding = replace(ROUNDING, inputs=inputs)
    found = BlockTrial(given, {"mlp.gate": rounding, "mlp.up": rounding}).error(scales)
    s = torch.ones(8) if scales is None else scales
    x = xs / s if inputs is None else inputs(xs / s)
    gate = x @ coarse(block.gate.weight * s).T + block.gate.bias
    up = x @ coarse(block.up.weight * s).T + block.up.bias
    change = block.down(torch.tanh(gate) * up) * 2 - before
    assert found == pytest.approx(share(change, before, given), rel=1e-4)
    torch.testing.assert_close(block(xs, factor=2.0), before)


@pytest.mark.parametrize("scales", [None, torch.linspace(0.5, 2, 12)], ids=["plain", "scaled"])
@pytest.mark.parametrize("tokens", [2, 20], ids=["by outputs", "by moments"])
def test_the_error_of_one_linear(scales: torch.Tensor | None, tokens: int) -> None:
    given = trials(tokens)
    layer = given[0].layer
    assert isinstance(layer, Layer)
    block, x = layer.mlp, torch.cat([layer.norm(trial.hidden) for trial in given])
    x = torch.tanh(block.gate(x)) * block.up(x)
    s = torch.ones(12) if scales is None else scales
    weight = block.down.weight
    change, before = x @ (coarse(weight * s) / s - weight).T, x @ weight.T
    trial = BlockTrial(given, {"mlp.down": ROUNDING})
    assert (trial.moment is None) == (tokens == 2)
    assert trial.error(scales) == pytest.approx(share(change, before, given), rel=1e-4)


def test_the_module_around_names() -> None:
    assert common_module(["mlp.gate", "mlp.up"]) == "mlp"
    assert common_module(["self_attn.q_proj", "mlp.up"]) == ""
    assert common_module(["mlp.gate"]) == "mlp.gate"
