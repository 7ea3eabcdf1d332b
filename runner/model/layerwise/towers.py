"""The language model in a model of transformers that wraps it in towers for images or sound, found from its configs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from runner.model.architecture import sites


def language_model(model: Any) -> str:
    """Return the name of the language model: the outermost model whose configuration is that of the text.

    "" where that is the model itself, or where none has that configuration.
    """
    text = model.config.get_text_config()
    inner = _models(model)
    return next((name for name, each in inner.items() if each.config is text), "")


def towers(model: Any) -> tuple[str, ...]:
    """Return the names of the models for images and sound in a model: those beside its language model."""
    inside = language_model(model)
    if not inside:
        return ()
    return tuple(
        name
        for name in _models(model)
        if name and not _within(name, inside) and not _within(inside, name)
    )  # fmt: skip


def in_tower(name: str, towers: tuple[str, ...]) -> bool:
    """Return whether a module is part of one of `towers`, or of what its name says to be one."""
    return sites.in_tower(name) or any(_within(name, tower) for tower in towers)


def leave_out(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give the parameters and buffers that a module of a tower itself holds a device, and NaN that takes no memory.

    Text does not pass through towers; some models look up the device of their first parameter.
    """

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        floats = tensor.is_floating_point()
        value = torch.full((), math.nan if floats else 0, dtype=dtype if floats else tensor.dtype, device=device)
        return value.expand(tensor.shape)

    for key, parameter in module._parameters.items():
        if parameter is not None and parameter.is_meta:
            module._parameters[key] = nn.Parameter(filled(parameter), requires_grad=False)
    for key, buffer in module._buffers.items():
        if buffer is not None and buffer.is_meta:
            module._buffers[key] = filled(buffer)


def _models(model: Any) -> dict[str, Any]:
    from transformers import PreTrainedModel

    return {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
