"""The list of decoder layers in a model of transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import sites


def find_layers(model: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """The outermost module list with as many entries as the configuration has decoder layers, outside of towers."""
    text = config.get_text_config()
    count = getattr(text, "decoder_layers", None) or getattr(text, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if count and isinstance(module, nn.ModuleList) and len(module) == count and not sites.in_tower(name):
            return name, module
    number = f"{count} " if count else ""
    why = ": its configuration says that it has 0" if count == 0 else ""
    raise RecipeError([Diagnostic("R404", f"{type(model).__name__} has no list of {number}decoder layers{why}")])
