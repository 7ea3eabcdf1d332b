"""Why a model cannot be written as GGUF, from config.json alone. Imported by the planner: no torch, no gguf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runner import wording
from runner.contracts.model_config import ModelConfig
from runner.export import gguf_metadata
from runner.export.gguf_architecture import TYPES, Architecture

ANOTHER = "use build.onnx, or deploy the checkpoint itself"
Refusal = tuple[str, str]  # what is wrong, remedy
_YARN = ("factor", "original_max_position_embeddings")
_LLAMA3 = (*_YARN, "low_freq_factor", "high_freq_factor")
_SCALING_NEEDS = {"linear": ("factor",), "yarn": _YARN, "llama3": _LLAMA3}


def refuse(config: ModelConfig) -> Refusal | None:
    """Return what is wrong with a model and the remedy; None for one that can be written."""
    own = TYPES.get(config.model_type)
    if own is None:
        shown = config.model_type
        return f"models of the type `{shown}` cannot be written as GGUF; {', '.join(sorted(TYPES))} can", ANOTHER
    checks = (_windows, _demands, _needs, _scaling, _own)
    return next((found for check in checks if (found := check(config, own)) is not None), None)


def _windows(config: ModelConfig, own: Architecture) -> Refusal | None:
    if own.windows or not any(gguf_metadata.windowed(config)):
        return None
    return f"some layers attend to a sliding window, which GGUF's {own.name} models do not have", ANOTHER


def _demands(config: ModelConfig, own: Architecture) -> Refusal | None:
    for key, allowed in own.demands.items():
        value = config.text.get(key)
        if value in allowed or (value is None and key in _DEFAULTS and _DEFAULTS[key] in allowed):
            continue
        if not any(allowed):
            return f"config.json has `{key}` = {value}, which GGUF's {own.name} models do not have", ANOTHER
        shown = " or ".join(str(each) for each in allowed if each is not None)
        return f"config.json has `{key}` = {value}; GGUF's {own.name} models have {shown}", ANOTHER
    return None


_DEFAULTS: Mapping[str, Any] = {"hidden_act": "silu", "decoder_sparse_step": 1}  # of transformers' configurations


def _needs(config: ModelConfig, own: Architecture) -> Refusal | None:
    needs = (*own.needs, *(("num_experts_per_tok",) if gguf_metadata.experts(config) else ()))
    missing = [key for key in needs if not config.text.get(key)]
    if not gguf_metadata.epsilon(config):
        missing.append("layer_norm_eps" if own.layer_norm else "rms_norm_eps")
    if any(gguf_metadata.windowed(config)) and not config.text.get("sliding_window"):
        missing.append("sliding_window")
    if not missing:
        return None
    return (
        f"config.json does not give {wording.ticked(missing)}, which a GGUF file of the architecture {own.name} says",
        "load the model with transformers and save it again: it writes every number of a configuration",
    )


def _scaling(config: ModelConfig, own: Architecture) -> Refusal | None:
    for layers in ("full_attention", "sliding_attention"):
        scaling = gguf_metadata.rope(config, layers)
        kind = gguf_metadata.rope_type(scaling)
        allowed = own.scalings if layers == "full_attention" or scaling == gguf_metadata.rope(config) else ("default",)
        if kind not in allowed:
            shown = wording.ticked(allowed, "or")
            what = f"the rotary embedding is of the type `{kind}`; {shown} can be written for {own.name} models"
            return what, ANOTHER
        missing = [key for key in _SCALING_NEEDS.get(kind, ()) if not scaling.get(key)]
        if missing:
            return f"the rotary embedding is of the type `{kind}` without {wording.ticked(missing)}", ANOTHER
        extra = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if scaling.get(key)]
        if kind == "yarn" and (extra or scaling.get("truncate") is False):
            shown = wording.ticked(extra or ["truncate"])
            return f"the rotary embedding has the type `yarn` with {shown}, which llama.cpp computes otherwise", ANOTHER
    return None


def _own(config: ModelConfig, own: Architecture) -> Refusal | None:
    check = _CHECKS.get(config.model_type)
    return None if check is None else check(config)


def _attention_scale(config: ModelConfig) -> Refusal | None:
    """Gemma: llama.cpp divides by the root of a head's width; for 27B models by that of hidden size / heads."""
    large = config.layer_count == {"gemma2": 46}.get(config.model_type, 62)
    wanted = config.hidden_size // config.heads if large else gguf_metadata.width(config)
    given = config.text["query_pre_attn_scalar"]
    if given == wanted:
        return None
    return f"config.json has `query_pre_attn_scalar` = {given}; llama.cpp computes this model with {wanted}", ANOTHER


def _every_fourth(config: ModelConfig) -> Refusal | None:
    """SmolLM3: llama.cpp does not rotate every fourth layer."""
    wanted = [int((layer + 1) % 4 != 0) for layer in range(config.layer_count)]
    given = config.text.get("no_rope_layers")
    if given is None or list(map(int, given)) == wanted:
        return None
    return "config.json has `no_rope_layers` other than every fourth layer, which llama.cpp leaves without", ANOTHER


def _all_heads(config: ModelConfig) -> Refusal | None:
    """OLMoE: llama.cpp's norm of keys is as wide as that of queries."""
    queries, keys = gguf_metadata.heads(config)
    if queries == keys:
        return None
    return f"config.json has `num_key_value_heads` = {keys}; GGUF's olmoe models have {queries}, all heads", ANOTHER


_CHECKS: Mapping[str, Callable[[ModelConfig], Refusal | None]] = {
    "gemma2": _attention_scale, "gemma3_text": _attention_scale, "smollm3": _every_fourth, "olmoe": _all_heads,
}  # fmt: skip
