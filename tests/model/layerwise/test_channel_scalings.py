"""Where scales of channels can move, found by running layers written for the purpose and layers of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner.model.layerwise.channel_scalings import find_scalings, stored_gain
from runner.model.layerwise.layer_trials import Trial
from tests.steps.transform.checkpoints import save


class Gated(nn.Module):
    """A feed-forward block behind a norm; `leak` adds a further reader of the norm's output."""

    def __init__(self, activation: Any, leak: bool = False, fused: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.RMSNorm(8)
        self.activation, self.leak, self.fused = activation, leak, fused
        self.first = nn.Linear(8, 24 if fused else 12, bias=False)
        self.second = nn.Linear(8, 12)
        self.last = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        if self.fused == "halves":
            gate, up = self.first(h).chunk(2, dim=-1)
        elif self.fused == "pairs":
            gate, up = self.first(h)[..., ::2], self.first(h)[..., 1::2]
        else:
            gate, up = self.first(h), self.second(h)
        out: torch.Tensor = x + self.last(self.activation(gate) * up)
        return out + h.mean() if self.leak else out


def found(layer: nn.Module) -> dict[str, tuple[tuple[str, ...], list[int]]]:
    trial = Trial(layer.eval().requires_grad_(False), torch.randn(1, 2, 8), ((), {}))
    return {each.source: (each.readers, each.channels.tolist()) for each in find_scalings(trial)}


def test_a_norm_and_a_gated_product() -> None:
    channels = list(range(12))
    assert found(Gated(torch.nn.functional.silu)) == {
        "norm": (("first", "second"), list(range(8))),
        "second": (("last",), channels),
    }


def test_a_further_reader_of_a_norm_keeps_it_out() -> None:
    assert set(found(Gated(torch.nn.functional.silu, leak=True))) == {"second"}


@pytest.mark.parametrize(("fused", "channels"), [("halves", range(12, 24)), ("pairs", range(1, 24, 2))])
def test_the_linear_half_of_a_fused_matrix_is_found(fused: str, channels: range) -> None:
    """Also where halves alternate."""
    layer = Gated(torch.nn.functional.silu, fused=fused)
    assert found(layer)["first"] == (("last",), list(channels))


def test_a_relu_lets_scales_pass_and_its_square_does_not() -> None:
    assert "first" in found(Gated(torch.relu))
    sequence = Gated(torch.relu)
    sequence.second.weight.data.zero_()
    sequence.second.bias.data.fill_(1)
    assert found(sequence)["first"] == (("last",), list(range(12)))
    square = Gated(lambda x: torch.relu(x) ** 2)
    assert "first" not in found(square)


def test_grouped_values_are_read_by_several_columns(tmp_path: Path) -> None:
    """Of two groups of values, each is read by two heads of eight channels."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(save(tmp_path / "model", "llama"), dtype=torch.float32)
    hidden = torch.randn(1, 2, 32)
    rotary = model.model.rotary_emb(hidden, torch.arange(2)[None])
    mask = torch.full((2, 2), -torch.inf).triu(1)[None, None]
    layer = model.model.layers[0].eval().requires_grad_(False)
    trial = Trial(layer, hidden, ((), {"position_embeddings": rotary, "attention_mask": mask}))
    scalings = {each.source: each for each in find_scalings(trial)}
    assert list(scalings) == ["input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"]
    values = scalings["self_attn.v_proj"]
    assert values.readers == ("self_attn.o_proj",)
    assert values.channels.tolist() == [*range(8), *range(8), *range(8, 16), *range(8, 16)]


class Offset(nn.Module):
    """Gemma's norm: 1 + w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (8,)) * (1 + self.weight)


class Squared(Offset):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (8,)) * self.weight**2


@pytest.mark.parametrize(
    ("norm", "gain"), [(nn.RMSNorm(8), 0.0), (nn.LayerNorm(8), 0.0), (Offset(), 1.0), (Squared(), None)]
)
def test_what_a_norm_adds_to_its_weight(norm: nn.Module, gain: float | None) -> None:
    weight = norm.get_parameter("weight")
    before = weight.detach().clone()
    assert stored_gain(norm.requires_grad_(False), torch.randn(4, 8)) == gain
    assert torch.equal(weight, before)
