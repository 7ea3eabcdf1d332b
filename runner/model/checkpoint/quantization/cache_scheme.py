"""How a checkpoint says that a server rounds its cache of keys and values: compressed-tensors' `kv_cache_scheme`.

    {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false}

and a tensor `k_scale` and `v_scale` of each attention module: [1], or [heads, 1, 1] for a strategy of "attn_head".
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "kv_cache_scheme"
SCALES = ("k_scale", "v_scale")
_METHOD = "compressed-tensors"
_TYPES = {"float8_e4m3": "float", "int8": "int"}
_STRATEGIES = {"tensor": False, "attn_head": True}


@dataclass(frozen=True)
class CacheScheme:
    """Keys and values as symmetric 8-bit numbers with fixed scales.

    element    "float8_e4m3" or "int8"
    per_head   each head of keys and of values has a scale of its own; else the module has one for keys, one for values
    """

    element: str
    per_head: bool = False

    @property
    def full_range(self) -> float:
        """What the largest absolute value is divided by to give the scale, as compressed-tensors does."""
        return 448.0 if self.element == "float8_e4m3" else 127.5

    def describe(self) -> str:
        """ "float8_e4m3, per head"; for cards and messages."""
        return f"{self.element}, per {'head' if self.per_head else 'tensor'}"

    def write(self) -> dict[str, Any]:
        return {
            "num_bits": 8,
            "type": _TYPES[self.element],
            "strategy": "attn_head" if self.per_head else "tensor",
            "symmetric": True,
            "dynamic": False,
            "group_size": None,
        }

    def scale_shape(self, heads: int) -> tuple[int, ...]:
        return (heads, 1, 1) if self.per_head else (1,)


def parse(config: Mapping[str, Any] | None) -> CacheScheme | None:
    """The scheme of a `quantization_config`; None without one. ValueError where such a cache cannot be computed."""
    written = (config or {}).get(KEY)
    if not written:
        return None
    if not isinstance(written, Mapping) or (config or {}).get("quant_method") != _METHOD:
        raise ValueError(f"its `{KEY}` is not understood")
    element = next((name for name, kind in _TYPES.items() if kind == written.get("type", "int")), None)
    strategy, fixed = written.get("strategy") or "tensor", written.get("dynamic", False) is False
    exact = written.get("num_bits", 8) == 8 and written.get("symmetric", True) is True
    if element is None or strategy not in _STRATEGIES or not (fixed and exact):
        raise ValueError(
            f"its `{KEY}` rounds keys and values in a way that cannot be computed; symmetric 8-bit numbers with fixed "
            "scales for a tensor or a head can"
        )
    return CacheScheme(element, _STRATEGIES[strategy])


def add(config: Mapping[str, Any] | None, scheme: CacheScheme) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint with this cache; `config` is what it has for its weights, if any."""
    if config:
        return {**config, KEY: scheme.write()}
    return {
        "quant_method": _METHOD, "format": "dense", "quantization_status": "compressed", "config_groups": {},
        "ignore": [], KEY: scheme.write(), "global_compression_ratio": None,
    }  # fmt: skip


def weights_only(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What a `quantization_config` says of weights; None where it is about the cache alone."""
    return config if config and (config.get("config_groups") or not config.get(KEY)) else None
