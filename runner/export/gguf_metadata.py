"""The numbers of a model in a GGUF file: its keys and values, from config.json. Imported by the planner: no gguf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runner.contracts.model_config import ModelConfig
from runner.export import gguf_architecture

Value = int | float | bool | str | list[bool]
_EXPERTS = ("num_local_experts", "num_experts")


def heads(config: ModelConfig) -> tuple[int, int]:
    """Return the heads of queries, and those of keys and values."""
    return config.heads, int(config.text.get("num_key_value_heads") or config.heads)


def width(config: ModelConfig) -> int:
    """Return the width of a head."""
    return int(config.text.get("head_dim") or config.hidden_size // max(1, config.heads))


def experts(config: ModelConfig) -> int:
    """Return the experts of a layer; 0 for a model without."""
    found = (config.text.get(key) for key in _EXPERTS)
    return next((int(each) for each in found if each), 0)


def rope(config: ModelConfig, layers: str = "full_attention") -> Mapping[str, Any]:
    """Return what config.json says of the rotary embedding of all layers, or of those of a type."""
    found = config.text.get("rope_parameters") or config.text.get("rope_scaling") or {}
    own = found.get(layers, found) if isinstance(found, Mapping) else {}
    return own if isinstance(own, Mapping) else {}


def rope_type(scaling: Mapping[str, Any]) -> str:
    """Return the kind of a rotary embedding: "default", "llama3", …"""
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def rope_base(config: ModelConfig, layers: str = "full_attention") -> float:
    """Return the base of the rotary frequencies."""
    local = config.text.get("rope_local_base_freq") if layers == "sliding_attention" else None
    return float(rope(config, layers).get("rope_theta") or local or config.text.get("rope_theta") or 10000.0)


def rotated(config: ModelConfig) -> int:
    """Return how many columns of a head are rotated."""
    part = rope(config).get("partial_rotary_factor") or config.text.get("partial_rotary_factor") or 1.0
    return int(width(config) * float(part))


def rope_factors(config: ModelConfig) -> list[float]:
    """Return what Llama 3's scaling divides each frequency by; empty for a model without (`LlamaModel` in llama.py)."""
    scaling = rope(config)
    if rope_type(scaling) != "llama3":
        return []
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    found = []
    for place in range(0, rotated(config), 2):
        wavelength = 2 * math.pi * rope_base(config) ** (place / rotated(config))
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def metadata(config: ModelConfig) -> dict[str, Value]:
    """Return the keys of a model that `gguf_refusals.refuse` lets pass, without "general." and "tokenizer."."""
    own = gguf_architecture.of(config)
    text = config.text
    queries, keys = heads(config)
    found: dict[str, Value] = {
        "context_length": context(config),
        "embedding_length": config.hidden_size,
        "block_count": config.layer_count,
        "feed_forward_length": int(text.get("intermediate_size") or text.get("moe_intermediate_size") or 0),
        "attention.head_count": queries,
        "attention.head_count_kv": keys,
        "attention.key_length": width(config),
        "attention.value_length": width(config),
        "rope.dimension_count": rotated(config),
        "rope.freq_base": rope_base(config),
        "vocab_size": config.vocabulary_size,
    }
    norm = "attention.layer_norm_epsilon" if own.layer_norm else "attention.layer_norm_rms_epsilon"
    found[norm] = epsilon(config)
    for key, name in own.scales.items():
        if text.get(key) is not None:
            found[name] = float(text[key])
    found |= _mixture(config) | _windows(config) | _scaling(config)
    return {f"{own.name}.{name}": value for name, value in found.items()}


def context(config: ModelConfig) -> int:
    """Return the positions that the file promises: for Phi-3, whose window llama.cpp ignores, no more than that."""
    window = config.text.get("sliding_window")
    if config.model_type == "phi3" and window and window < config.context:
        return int(window)
    return config.context


def epsilon(config: ModelConfig) -> float:
    """Return what the norms add to a variance."""
    keys = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon")
    found = (config.text.get(key) for key in keys)
    return float(next((each for each in found if each is not None), 0.0))


def windowed(config: ModelConfig) -> list[bool]:
    """Return which layers attend to a sliding window."""
    types = config.text.get("layer_types") or []
    return [each == "sliding_attention" for each in types]


def _mixture(config: ModelConfig) -> dict[str, Value]:
    if not experts(config):
        return {}
    found: dict[str, Value] = {
        "expert_count": experts(config), "expert_used_count": int(config.text["num_experts_per_tok"])
    }  # fmt: skip
    if config.text.get("moe_intermediate_size"):
        found["expert_feed_forward_length"] = int(config.text["moe_intermediate_size"])
    if config.text.get("shared_expert_intermediate_size"):
        found["expert_shared_feed_forward_length"] = int(config.text["shared_expert_intermediate_size"])
    return found


def _windows(config: ModelConfig) -> dict[str, Value]:
    if not gguf_architecture.of(config).windows or not any(windowed(config)):
        return {}
    return {
        "attention.sliding_window": int(config.text["sliding_window"]),
        "attention.sliding_window_pattern": windowed(config),
        "rope.freq_base_swa": rope_base(config, "sliding_attention"),
    }


def _scaling(config: ModelConfig) -> dict[str, Value]:
    scaling = rope(config)
    kind = rope_type(scaling)
    if kind not in ("linear", "yarn"):
        return {}
    found: dict[str, Value] = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = int(scaling["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if scaling.get(key) is not None:
                found[f"rope.scaling.yarn_{key}"] = float(scaling[key])
    return found
