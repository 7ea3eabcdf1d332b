"""Experts whose inputs are rounded as a server rounds them, in place of transformers' own module of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from runner.model.checkpoint.quantization.scheme import Numbers
from runner.model.layerwise.activation_rounding import round_inputs
from runner.model.layerwise.layer_probes import StandIn


class RoundedExperts(StandIn):
    """Stands in for a module of experts of transformers and computes what it does, with rounded inputs.

    Both the inputs of the first matrices and those of the last one are rounded to `numbers`.
    """

    def __init__(self, experts: nn.Module, numbers: Numbers) -> None:
        super().__init__(experts)
        self.numbers = numbers

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The sum [tokens, columns] of the outputs of the experts that each token is routed to, times their weights."""
        out = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            tokens, place = (top_k_index == expert).nonzero(as_tuple=True)
            if expert >= len(self._parameter("down_proj")):  # transformers' number for no expert
                continue
            given = self._expert(expert, hidden_states[tokens]) * top_k_weights[tokens, place, None]
            out.index_add_(0, tokens, given.to(out.dtype))
        return out

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        experts: Any = self
        first = "gate_up_proj" if experts.has_gate else "up_proj"
        inner = self._product(first, expert, x)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        found = self._product("down_proj", expert, inner)
        normed: torch.Tensor = experts.post_expert_norm(found) if experts.has_post_expert_norm else found
        return normed

    def _product(self, key: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        experts: Any = self
        weight = self._parameter(key)[expert]
        bias = self._parameter(f"{key}_bias")[expert] if experts.has_bias else None
        return functional.linear(round_inputs(x, self.numbers), weight.T if experts.is_transposed else weight, bias)

    def _parameter(self, key: str) -> torch.Tensor:
        experts: nn.Module = self.__dict__["layer"]
        return experts.get_parameter(key)
