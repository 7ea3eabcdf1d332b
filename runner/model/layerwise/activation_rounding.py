"""Rounding the inputs of linear layers as a scheme says, so that evaluations compute what a server computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Numbers, Scheme
from runner.model.layerwise.linear import is_linear


def attach(layer: nn.Module, name: str, scheme_of: Callable[[str], Scheme | None]) -> list[RemovableHandle]:
    """Round the inputs of every linear inside `layer`, which has that name, whose scheme rounds activations."""
    handles = []
    for inner, module in layer.named_modules():
        scheme = scheme_of(f"{name}.{inner}") if is_linear(module) else None
        if scheme is not None and scheme.activations is not None:
            handles.append(module.register_forward_pre_hook(_hook(scheme.activations)))
    return handles


def _hook(numbers: Numbers) -> Callable[[nn.Module, Any], Any]:
    def hook(module: nn.Module, inputs: Any) -> Any:
        return (round_dynamically(inputs[0], numbers), *inputs[1:])

    return hook


def round_dynamically(inputs: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """Inputs [..., in] rounded to the levels of `numbers`, symmetric ones, with scales from the inputs themselves.

    In the dtype of the inputs and in the order of compressed-tensors 0.20: the largest value of a full range of
    integers is a tie, 127.5 steps, so that another last bit of the scale would move it.
    """
    values = inputs.unflatten(-1, (-1, numbers.layout)) if isinstance(numbers.layout, int) else inputs
    # "token", or a group of a token, else all of it
    largest = values.abs().amax() if numbers.layout == "tensor" else values.abs().amax(-1, keepdim=True)
    levels = Levels(numbers, inputs.dtype)
    scale = largest / levels.full_range
    scale = torch.where(scale > 0, scale, 1.0)  # zeros are stored with any scale
    return levels.nearest_(values / scale, torch.zeros_like(scale)).mul_(scale).reshape(inputs.shape)
