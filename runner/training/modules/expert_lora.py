"""Adapters of the experts of a mixture, which transformers holds in parameters [experts, rows, columns].

peft adds the product of both factors to the weights of all experts in every forward, and keeps the sums for the
backward: as many bytes again as all experts take. Here every expert computes W x + s·B(A x) for its own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.nn import functional

from runner.model.layerwise.adapter import expert_factors, is_transposed
from runner.training.modules.lora_math import computing, is_pruned, product


class ExpertBranch(nn.Module):
    """The adapter of one parameter of a module of experts; those of one module are wrapped around one another.

    It has the factors and the names of peft's `wrapper`. An expert that was pruned acts under its mask:
    M ⊙ (W + s·B·A).

    masked   whether it does, for every expert
    """

    def __init__(self, wrapper: ParamWrapper) -> None:
        super().__init__()
        parts: Any = wrapper
        inner = parts.base_layer
        self.parameter_name: str = parts.parameter_name
        self.base_layer = ExpertBranch(inner) if isinstance(inner, ParamWrapper) else inner
        self.lora_A, self.lora_B = parts.lora_A, parts.lora_B
        (scale,) = parts.scaling.values()
        self.scale = float(scale)
        held = matrices(self.experts, self.parameter_name).detach()
        self.masked = [is_pruned(each) for each in held]

    @property
    def experts(self) -> nn.Module:
        """The module of experts that this adapter, and others of it, are wrapped around."""
        inner: nn.Module = self.base_layer
        return inner.experts if isinstance(inner, ExpertBranch) else inner

    def factors(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Return A [r, in] and B [out, r] of every expert."""
        (a,), (b,) = ([each.weight for each in part.values()] for part in (self.lora_A, self.lora_B))
        one, other = expert_factors(a, b, len(self.masked))
        return one.unbind(), other.unbind()

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        branches: dict[str, ExpertBranch] = {}
        module: Any = self
        while isinstance(module, ExpertBranch):
            branches[module.parameter_name] = module
            module = module.base_layer
        products = {
            key: _Products(module, key, branches.get(key))
            for key in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
        }
        return routed(module, products, hidden_states, top_k_index, top_k_weights)


def matrices(experts: nn.Module, key: str) -> torch.Tensor:
    """Return the parameter of a module of experts as [experts, rows, columns]: a view."""
    parameter = experts.get_parameter(key)
    return parameter.mT if is_transposed(experts) else parameter


def replace_wrappers(model: nn.Module) -> None:
    """Put an `ExpertBranch` in the place of every wrapper of peft around a module of experts.

    peft cannot make them itself: around an adapter of its own it takes no class but `ParamWrapper`.
    """
    for parent in [module for module in model.modules() if not isinstance(module, ParamWrapper)]:
        for name, child in parent.named_children():
            if isinstance(child, ParamWrapper):
                setattr(parent, name, ExpertBranch(child))


class _Products:
    """The products of all experts with one parameter, and with its adapter where it has one."""

    def __init__(self, experts: Any, key: str, branch: ExpertBranch | None) -> None:
        self.weights = matrices(experts, key)
        self.biases = getattr(experts, f"{key}_bias") if experts.has_bias else None
        self.branch = branch
        if branch is not None:
            self.a, self.b = branch.factors()

    def __call__(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """Return the product of an expert [tokens, rows] for its inputs x [tokens, columns]."""
        weight, bias = self.weights[expert], None if self.biases is None else self.biases[expert]
        if self.branch is None:
            return functional.linear(x, weight, bias)
        a, b = self.a[expert], self.b[expert]
        if self.branch.masked[expert]:
            y = product(computing(x), a, b, self.branch.scale, True, lambda: weight)
            return y if bias is None else y + bias.to(y.dtype)
        y = functional.linear(x, weight, bias)
        given = x if torch.is_autocast_enabled(x.device.type) else x.to(a.dtype)
        return (y + functional.linear(functional.linear(given, a), b) * self.branch.scale).to(y.dtype)


def routed(
    experts: Any, products: Mapping[str, _Products], x: torch.Tensor, index: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Return Σ over the k experts of each token of its share times their output, in the shape and type of x.

    x [..., hidden]; `index`, `shares` [tokens, k]. `products` are those with the first and with the last parameter.
    Tokens are sorted by their experts, so that every sum has one order.
    """
    first, last = products.values()
    count, k = index.shape
    order = index.reshape(-1).argsort(stable=True)
    tokens = index.reshape(-1).bincount(minlength=len(first.weights)).tolist()
    found = []
    for expert, rows in enumerate(x.reshape(count, -1)[order // k].split(tokens)):
        if not len(rows):
            continue
        out = first(expert, rows)
        out = last(expert, experts._apply_gate(out) if experts.has_gate else experts.act_fn(out))
        found.append(experts.post_expert_norm(out) if experts.has_post_expert_norm else out)
    weighted = torch.cat(found) * shares.reshape(-1)[order, None]
    return weighted[order.argsort()].view(count, k, -1).sum(1).to(x.dtype).view_as(x)
