"""Rounding the inputs of linear layers as a scheme says, so that evaluations compute what a server computes.

In the dtype of the inputs and in the order of compressed-tensors 0.20: the largest value of a full range of integers is
a tie, 127.5 steps, so that another last bit of the scale would move it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from runner.model.checkpoint.quantization import scale_types
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Numbers, Scheme
from runner.model.layerwise.linear import is_linear

_SMALLEST_LOCAL = 0.125  # compressed-tensors' scale of a group of zeros, where scales have two levels


def attach(
    layer: nn.Module,
    name: str,
    scheme_of: Callable[[str], Scheme | None],
    scale_of: Callable[[str], torch.Tensor | None],
) -> list[RemovableHandle]:
    """Round the inputs of every linear inside `layer`, which has that name, whose scheme rounds activations.

    `scale_of` gives the calibrated scale of a module's inputs [1], None where its scheme has none.
    """
    handles = []
    for inner, module in layer.named_modules():
        scheme = scheme_of(f"{name}.{inner}") if is_linear(module) else None
        if scheme is not None and scheme.activations is not None:
            scale = scale_of(f"{name}.{inner}") if scheme.calibrated else None
            handles.append(module.register_forward_pre_hook(_hook(scheme.activations, scale)))
    return handles


def _hook(numbers: Numbers, scale: torch.Tensor | None) -> Callable[[nn.Module, Any], Any]:
    def hook(module: nn.Module, inputs: Any) -> Any:
        return (round_inputs(inputs[0], numbers, scale), *inputs[1:])

    return hook


def round_inputs(inputs: torch.Tensor, numbers: Numbers, calibrated: torch.Tensor | None = None) -> torch.Tensor:
    """Inputs [..., in] rounded to the levels of `numbers`, symmetric ones.

    calibrated  the scale of the inputs, or of two levels the global scale; None: scales come from the inputs themselves
    """
    if calibrated is not None and not numbers.two_level:
        scale = calibrated.to(inputs.dtype)
        return _nearest(inputs, scale, Levels(numbers, inputs.dtype))
    values = inputs.unflatten(-1, (-1, numbers.layout)) if isinstance(numbers.layout, int) else inputs
    # "token", or a group of a token, else all of it
    largest = values.abs().amax() if numbers.layout == "tensor" else values.abs().amax(-1, keepdim=True)
    if numbers.two_level:
        if calibrated is None:
            raise ValueError(f"inputs rounded to {numbers.describe()} need a global scale")
        levels = Levels(numbers, scale_types.E4M3)
        local = (calibrated * (largest / levels.full_range)).clamp(max=448).to(scale_types.E4M3).float()
        scale = torch.where(local > 0, local, _SMALLEST_LOCAL) / calibrated
    elif numbers.scale == "float8_e8m0":
        levels = Levels(numbers, scale_types.E8M0)
        scale = levels.storable(levels.full_scale(largest.float())).to(inputs.dtype)
    else:
        levels = Levels(numbers, inputs.dtype)
        scale = largest / levels.full_range
    scale = torch.where(scale > 0, scale, 1.0)  # zeros are stored with any scale
    return _nearest(values, scale, levels).to(inputs.dtype).reshape(inputs.shape)


def _nearest(values: torch.Tensor, scale: torch.Tensor, levels: Levels) -> torch.Tensor:
    return levels.nearest_(values / scale, torch.zeros_like(scale)).mul_(scale)
