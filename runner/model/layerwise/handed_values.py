"""Whether decoder layers use what layers before them return beside hidden states, found without weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from runner.model.layerwise import refusals
from runner.model.layerwise.linear_calls import experts_stood_in


def used(model: Any, layers: Iterable[nn.Module]) -> bool:
    """Return whether a forward of an empty model computes with what its layers return beside hidden states.

    True also where no forward can be run on the meta device.
    """
    handles = [layer.register_forward_hook(_replace) for layer in layers]
    try:
        with experts_stood_in(model):
            refusals.meta_forward(model, cached=False)
    except Exception:  # noqa: BLE001  whatever the model's code raises, it could not be shown to do without
        return True
    finally:
        for handle in handles:
            handle.remove()
    return False


class _Unusable(torch.Tensor):
    """A tensor with which nothing can be computed; it may be passed on and compared with None."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise TypeError(f"{func} was called with what a layer before returned")


def _replace(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    if not isinstance(output, tuple | list):
        return output
    unusable = torch.Tensor._make_subclass(_Unusable, torch.empty(0, device="meta"))
    return type(output)([output[0], *(None if each is None else unusable for each in output[1:])])
