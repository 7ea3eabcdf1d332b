"""Models of transformers without memory for their weights."""

from __future__ import annotations

from typing import Any

import torch

from runner.model.architecture import supported


def build_empty(config: Any, **how: Any) -> Any:
    """Build the model of a configuration with every parameter and buffer on the meta device.

    What the model computes while it is built (rotary tables, drop-path rates) is computed for real, because its code
    may read it, and dropped afterwards.
    """
    return _build(config, how).to("meta")


def build_with_buffers(config: Any, **how: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Build the model as `build_empty` does; return it with the values that its own code gave its buffers, by name.

    Buffers of equal values share one tensor, so that a table that each layer holds takes memory once.
    """
    model = _build(config, how)
    buffers: dict[str, torch.Tensor] = {}
    alike: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        others = alike.setdefault((buffer.shape, buffer.dtype), [])
        same = next((other for other in others if torch.equal(other, buffer)), None)
        if same is None:
            others.append(buffer)
        buffers[name] = buffer if same is None else same
    return model.to("meta"), buffers


def _build(config: Any, how: dict[str, Any]) -> Any:
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    with init_empty_weights(), no_init_weights():
        return auto_class(config).from_config(config, **how)


def auto_class(config: Any) -> Any:
    """Return the class of transformers that makes and loads models of a configuration, towers included."""
    import transformers

    return getattr(transformers, supported.auto_class(config.model_type))
