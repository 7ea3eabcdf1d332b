"""The attention modules of a model that keep keys and values in a cache, and changing what they put into it.

What a server rounds are keys after their rotary embedding, and values: exactly what transformers' attention code passes
to `past_key_values.update`. So an object with that method stands in for the cache, as compressed-tensors 0.20 does it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from runner.contracts.model_description import CachedAttention
from runner.model.checkpoint.quantization.cache_scheme import CacheScheme
from runner.model.layerwise import refusals

Change = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_ARGUMENTS = ("past_key_values", "past_key_value")
# By these names compressed-tensors finds the modules whose caches it rounds.
_PROJECTIONS = ("k_proj", "v_proj", "qkv_proj", "kv_b_proj")


def is_cached(module: nn.Module) -> bool:
    """Whether compressed-tensors rounds the cache of a module: by its class's name, its projections, its arguments."""
    if "attention" not in type(module).__name__.lower() or not any(hasattr(module, name) for name in _PROJECTIONS):
        return False
    return _argument(module) is not None


def within(module: nn.Module, name: str = "") -> dict[str, nn.Module]:
    """The attention modules in `module`, which has that name, by their full names."""
    prefix = f"{name}." if name else ""
    return {prefix + inner: each for inner, each in module.named_modules() if is_cached(each)}


def _argument(module: nn.Module) -> str | None:
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in _ARGUMENTS if name in parameters), None)


class ChangedCache:
    """A cache that changes what is put into it, then passes it on to `inner`, the cache that the model was given."""

    def __init__(self, change: Change, inner: Any) -> None:
        self._change, self._inner = change, inner

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = self._change(keys, values)
        return (keys, values) if self._inner is None else self._inner.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def attach(module: nn.Module, change: Change) -> RemovableHandle:
    """Let `change` have the keys and values [batch, heads, tokens, columns] that a module puts into its cache."""
    argument = _argument(module)

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, str(argument): ChangedCache(change, kwargs.get(str(argument)))}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def round_to(values: torch.Tensor, scale: torch.Tensor, scheme: CacheScheme) -> torch.Tensor:
    """`values` [batch, heads, tokens, columns] as a cache holds them; `scale` is [1] or [heads, 1, 1].

    In the dtype of the values and in the order of compressed-tensors 0.20.
    """
    scaled = values / scale
    if scheme.element == "int8":
        return torch.round(scaled.clamp_(-128, 127)).mul_(scale)
    return scaled.clamp_(-448, 448).to(torch.float8_e4m3fn).to(values.dtype).mul_(scale)


def rounding(scheme: CacheScheme, key_scale: torch.Tensor, value_scale: torch.Tensor) -> Change:
    return lambda keys, values: (round_to(keys, key_scale, scheme), round_to(values, value_scale, scheme))


def described(model: Any, stored: Mapping[str, str | None]) -> tuple[CachedAttention, ...] | None:
    """The attention modules of an empty model whose caches compressed-tensors rounds, by a forward on the meta device.

    `stored` has the names of parameters in the checkpoint. None where no forward can be run there.
    """
    heads: dict[str, tuple[int, int]] = {}
    found = within(model)

    def watch(name: str) -> Change:
        def change(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if keys.ndim == 4 and values.ndim == 4:
                heads[name] = keys.shape[1], values.shape[1]
            return keys, values

        return change

    handles = [attach(module, watch(name)) for name, module in found.items()]
    try:
        refusals.meta_forward(model)
    except Exception:  # noqa: BLE001  whatever the model's code raises, nothing is known of its caches
        return None
    finally:
        for handle in handles:
            handle.remove()
    return tuple(CachedAttention(name, stored_name(name, stored.get), *heads.get(name, (0, 0))) for name in found)


def counts_heads(model: Any) -> bool:
    """Whether compressed-tensors finds the heads of every cache: in `num_key_value_heads` of its configuration."""
    configs = [getattr(module, "config", model.config) for module in within(model).values()]
    return all(hasattr(config, "num_key_value_heads") for config in configs)


def stored_name(name: str, stored: Callable[[str], str | None]) -> str:
    """The name of an attention module in the checkpoint, by those of its projections; its own where none is stored."""
    for projection in _PROJECTIONS:
        weight = stored(f"{name}.{projection}.weight")
        if weight is not None:
            return weight.removesuffix(f".{projection}.weight")
    return name
