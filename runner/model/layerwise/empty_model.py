"""Models of transformers without memory for their weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def build_empty(config: Any, **how: Any) -> Any:
    """The model of a configuration, every parameter and buffer on the meta device.

    Tables that it computes are computed for real and dropped: for making them on the meta device torch would import its
    symbolic shapes, a quarter of a second.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    def build() -> Any:
        with init_empty_weights(), no_init_weights(), _EmptyOnMeta():
            return AutoModelForCausalLM.from_config(config, **how)

    try:
        model = build()
    except NotImplementedError:  # of an operation whose shapes only torch's Python knows, which may not be imported
        importlib.import_module("torch._decomp")
        model = build()
    return model.to("meta")


class _EmptyOnMeta(TorchFunctionMode):
    """Weights never get memory, not even until they are registered: it would leave holes between what stays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
