"""The list of decoder layers in a model of transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from runner.errors import Diagnostic, RecipeError
from runner.model.layerwise import towers


def find_layers(model: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """The outermost module list with as many entries as the configuration has decoder layers, outside of towers.

    It is in the language model where there are models for images or sound beside it.
    """
    text = config.get_text_config()
    count = getattr(text, "decoder_layers", None) or getattr(text, "num_hidden_layers", None)
    inside, others = towers.language_model(model), towers.towers(model)
    for name, module in model.named_modules():
        if not (isinstance(module, nn.ModuleList) and name.startswith(inside)):
            continue
        if count and len(module) == count and not towers.in_tower(name, others):
            return name, module
    number = f"{count} " if count else ""
    why = ": its configuration says that it has 0" if count == 0 else ""
    raise RecipeError([Diagnostic("R404", f"{type(model).__name__} has no list of {number}decoder layers{why}")])
