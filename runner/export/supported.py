"""The supported model types, with graphs compared with transformers, and the masks of their attention. No torch.

The keys of config.json that decide this concern graphs alone, so that they are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.model_config import ModelConfig

FULL = "full"  # one causal mask
SLIDING = "sliding"  # one mask, limited to `sliding_window` where the configuration has one
BY_TYPE = "by_type"  # a mask for each kind of layer in `layer_types`

MASKS: Mapping[str, str] = {
    "llama": FULL, "gpt2": FULL, "gpt_neox": FULL, "opt": FULL, "mistral": SLIDING, "phi3": SLIDING,
    "qwen2": BY_TYPE, "qwen3": BY_TYPE, "gemma2": BY_TYPE, "gemma3_text": BY_TYPE, "gemma": FULL,
}  # fmt: skip

# The rotary tables of these depend on the length of the text, which a traced graph would fix.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def refuse(config: ModelConfig) -> tuple[str, str] | None:
    """Return why a model with this configuration cannot be exported: (what is wrong, remedy); None if it can."""
    model_type = config.model_type
    if model_type not in MASKS:
        return (
            f"models of the type `{model_type}` cannot be exported to ONNX; the types {', '.join(sorted(MASKS))} can",
            "deploy the checkpoint with transformers or vLLM, or choose a model of one of those types",
        )
    rope = _rope_types(config.raw)
    found = sorted(rope & set(LENGTH_DEPENDENT_ROPE))
    if found:
        return (
            f"the model's rotary embedding is of the type `{found[0]}`, whose tables depend on the length of the text",
            "choose a model with another `rope_type`",
        )
    if config.raw.get("use_bidirectional_attention"):
        return (
            "the model attends in both directions (`use_bidirectional_attention` in config.json)",
            "choose a causal model",
        )
    return None


def _rope_types(config: Mapping[str, Any]) -> set[str]:
    found = set()
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        entries = [value, *value.values()] if isinstance(value, Mapping) else []
        for entry in entries:
            if isinstance(entry, Mapping):
                found.add(str(entry.get("rope_type", entry.get("type", "default"))))
    return found


def context(config: ModelConfig) -> int:
    """Return the number of positions of a model, for prompt and continuation together."""
    if not config.context:
        raise ValueError("config.json names no number of positions")
    return config.context
