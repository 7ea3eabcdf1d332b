"""What reads and writes a residual stream, found by running layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from runner.model.layerwise.layer_trials import Trial
from runner.model.layerwise.residual_stream import Stream, find_stream, subtracts_mean


class Layer(nn.Module):
    """Two blocks with square matrices, so that widths do not tell what writes to the stream."""

    def __init__(self, parallel: bool = False, after: bool = False, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parallel, self.after, self.factor = parallel, after, factor
        self.before_one, self.before_two, self.behind = nn.RMSNorm(8), nn.RMSNorm(8), nn.RMSNorm(8)
        nn.init.normal_(self.behind.weight)
        self.one_in, self.one_out, self.two_in, self.two_out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        one = self.one_out(torch.tanh(self.one_in(self.before_one(x)))) * self.factor
        if self.after:
            one = self.behind(one)
        middle = x + one
        two = self.two_out(torch.tanh(self.two_in(self.before_two(x if self.parallel else middle)))) * self.factor
        return (middle + (self.behind(two) if self.after else two),)


def found(**how: Any) -> Stream:
    layer = Layer(**how).eval().requires_grad_(False)
    return find_stream(Trial(layer, torch.randn(1, 2, 8), ((), {})))


@pytest.mark.parametrize("how", [{}, {"parallel": True}, {"factor": 0.22}], ids=str)
def test_readers_stand_behind_norms_and_writers_add(how: dict[str, Any]) -> None:
    stream = found(**how)
    assert stream.readers == {"before_one": ("one_in",), "before_two": ("two_in",)}
    assert stream.writers == ("one_out", "two_out")
    assert stream.others == ()


def test_a_norm_behind_blocks_leaves_no_writers() -> None:
    stream = found(after=True)
    assert (stream.writers, stream.others) == ((), ("behind",))


def test_which_norms_subtract_the_mean() -> None:
    inputs = torch.randn(4, 8)
    assert subtracts_mean(nn.LayerNorm(8), inputs)
    assert not subtracts_mean(nn.RMSNorm(8), inputs)
