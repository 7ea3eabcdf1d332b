"""Variants of configurations within model types: each a type and what differs from its tiny model.

Windows of the sweep are three times as long as sliding windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 10000.0,
}  # fmt: skip
_LONG = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 2.5, 3.0, 3.5], "rope_theta": 10000.0,
    "original_max_position_embeddings": 16, "factor": 4.0,
}  # fmt: skip
_SLIDING = ["sliding_attention", "full_attention"] * 2
_LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, 1 key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, as many key-value heads as heads": ("llama", {"num_key_value_heads": 4}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, odd half of a head": ("llama", {"head_dim": 6}),
    "llama, llama3 positions": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": _YARN}),
    "llama, linear positions": (
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    ),
    "llama, dynamic positions": (
        "llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    ),
    "llama, gelu": ("llama", {"hidden_act": "gelu"}),
    "llama, several ends": ("llama", {"eos_token_id": [2, 3]}),
    "llama, vocabulary that no power of two divides": ("llama", {"vocab_size": 131}),
    "llama, 1 layer": ("llama", {"num_hidden_layers": 1}),
    "mistral, sliding": ("mistral", {"sliding_window": 5}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, tied": ("mistral", {"tie_word_embeddings": True}),
    "ministral, layers of two kinds": ("ministral", {"layer_types": _SLIDING}),
    "qwen2, windows from layer 2 on": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    ),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, layers of two kinds": ("qwen2", {"layer_types": _SLIDING, "use_sliding_window": True}),
    "qwen3, wide heads": ("qwen3", {"head_dim": 16}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "qwen3, 1 key-value head": ("qwen3", {"num_key_value_heads": 1}),
    "qwen3, yarn": ("qwen3", {"rope_parameters": _YARN}),
    "gemma, 1 key-value head": ("gemma", {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2, soft caps": ("gemma2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma2, no soft caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2, layers of one kind": ("gemma2", {"layer_types": ["full_attention"] * 4}),
    "gemma3_text, a pattern": ("gemma3_text", {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    "gemma3_text, tied": ("gemma3_text", {"tie_word_embeddings": True}),
    "gemma3_text, untied": ("gemma3_text", {"tie_word_embeddings": False}),
    "gemma4_text, no sharing": ("gemma4_text", {"num_kv_shared_layers": 0}),
    "gemma4_text, per-layer inputs": ("gemma4_text", {"hidden_size_per_layer_input": 8}),
    "gemma4_text, wide middle": ("gemma4_text", {"use_double_wide_mlp": True}),
    "phi, part of a head turned": ("phi", {"partial_rotary_factor": 0.5}),
    "phi, normed queries and keys": ("phi", {"qk_layernorm": True}),
    "phi3, longrope": ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 16}),
    "phi3, sliding": ("phi3", {"sliding_window": 8}),
    "phi3, part of a head turned": ("phi3", {"partial_rotary_factor": 0.5}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "stablelm, normed queries and keys": ("stablelm", {"qk_layernorm": True}),
    "stablelm, biases": ("stablelm", {"use_qkv_bias": True}),
    "gpt_neox, parallel": ("gpt_neox", {"use_parallel_residual": True}),
    "gpt_neox, one after another": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, no biases": ("gpt_neox", {"attention_bias": False}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, one after another": ("falcon", {"parallel_attn": False}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "cohere, normed queries and keys": ("cohere", {"use_qk_norm": True}),
    "cohere, scaled logits": ("cohere", {"logit_scale": 0.5}),
    "cohere2, a pattern": ("cohere2", {"layer_types": _SLIDING}),
    "olmo, clipped": ("olmo", {"clip_qkv": 1.0}),
    "olmo3, layers of two kinds": ("olmo3", {"layer_types": _SLIDING}),
    "granite, multipliers": (
        "granite",
        {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.3},
    ),
    "minicpm3, no latent queries": ("minicpm3", {**_LATENT, "q_lora_rank": None}),
    "minicpm3, latent queries": ("minicpm3", {**_LATENT, "q_lora_rank": 16}),
    "youtu, latent queries": ("youtu", {**_LATENT, "q_lora_rank": 16}),
    "youtu, no latent queries": ("youtu", {**_LATENT, "q_lora_rank": None}),
    "smollm3, layers without positions": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "exaone4, a pattern": ("exaone4", {"layer_types": _SLIDING}),
    "opt, norms after": ("opt", {"do_layer_norm_before": False}),
    "opt, no biases": ("opt", {"enable_bias": False}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, wide": ("gpt2", {"n_inner": 96}),
    "gptj, half a head turned": ("gptj", {"rotary_dim": 8}),
    "bloom, residual after the norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "mpt, clipped": ("mpt", {"attn_config": {"clip_qkv": 1.0}}),
    "starcoder2, sliding": ("starcoder2", {"sliding_window": 8}),
    "nemotron, part of a head turned": ("nemotron", {"partial_rotary_factor": 0.5}),
    "glm, biases": ("glm", {"attention_bias": True}),
    "glm4, part of a head turned": ("glm4", {"partial_rotary_factor": 0.5}),
    "seed_oss, biases": ("seed_oss", {"attention_bias": True, "attention_out_bias": True}),
}  # fmt: skip
