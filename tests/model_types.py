"""Tiny configurations of the model types of transformers' causal-LM mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Keys of configurations under whatever name an architecture has for them, and their values in a tiny model.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "n_embd",
            "d_model",
            "dim",
            "emb_dim",
            "embed_dim",
            "embedding_size",
            "word_embed_proj_dim",
            "lru_width",
            "attention_hidden_size",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "n_inner",
            "d_ff",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_hidden_size",
            "dense_ffn_hidden_size",
            "d_inner",
            "shared_expert_intermediate_size",
            "block_ff_dim",
            "feed_forward_size",
            "mlp_hidden_size",
            "dim_ff",
            "ff_dim",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "expert_ffn_hidden_size",
            "moe_shared_expert_intermediate_size",
            "shared_intermediate_size",
            "intermediate_size_mlp",
            "routed_expert_intermediate_size",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "num_layers",
            "n_layers",
            "encoder_layers",
            "decoder_layers",
            "num_decoder_layers",
            "num_encoder_layers",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "kv_channels", "attention_head_dim"), 8),
    **dict.fromkeys(("vocab_size", "text_vocab_size", "vocab_size_per_layer_input"), 128),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "max_target_positions",
            "max_source_positions",
            "seq_length",
        ),
        256,
    ),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "local_attention", "window"), 8),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "n_experts"), 4
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "moe_router_topk", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_groups"), 1),
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "index_n_heads": 4,
    "index_head_dim": 8,
    "index_topk": 8,
    "first_k_dense_replace": 1,
    "moe_layer_start_index": 1,
    "num_dense_layers": 1,
    "mamba_d_state": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 16,
    "ssm_state_size": 16,
    "state_size": 16,
    "chunk_size": 16,
    "n_groups": 1,
    "mamba_n_groups": 1,
    "time_step_rank": 4,
    "mamba_dt_rank": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "rotary_dim": 4,
    "attention_multiplier": 1.0,
    "query_pre_attn_scalar": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "decoder_start_token_id": 1,
    "unk_token_id": 3,
    "image_size": 32,
    "patch_size": 8,
}

MLA = {"num_key_value_heads": 4}
HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
SHARING: dict[str, Any] = {
    "per_layer_config": {},
    "global_head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
# What single types need besides.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "axk1",
            "axk2",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "longcat_flash",
            "minicpm3",
            "youtu",
        ),
        MLA,
    ),
    "deepseek_v2": {**MLA, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "bailing_hybrid": {
        **MLA,
        "layer_types": HYBRID,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_expert_group": 1,
    },
    "kimi_linear": {**MLA, "layer_types": HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": HYBRID},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "gemma3n_text": {"intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]},
    "gemma3n": {"text_config": {"intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]}},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh", "local", "lsh"],
    },
    "xlstm": {"embedding_dim": 32, "head_dim": 8, "num_blocks": 4},
    "xmod": {"default_language": "en_XX"},
    "gemma4_text": SHARING,
    "gemma4_unified_text": SHARING,
    "dots3_note_text": {**MLA, "per_layer_config": {}, "index_head_dim": 8, "index_n_heads": 2},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_mem_blocks": 1,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
    },
    "kimi_k25": {"text_config": MLA},
    "mistral4": {**MLA, "head_dim": 16, "qk_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "full_attention"] * 2, "hc_lowrank": 8},
}


# Keys of numbers of channels, which differ between a narrow and a wide model.
CHANNELS = {
    "hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embed_dim", "embedding_size", "word_embed_proj_dim",
    "lru_width", "attention_hidden_size", "intermediate_size", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim",
    "decoder_ffn_dim", "ffn_hidden_size", "dense_ffn_hidden_size", "d_inner", "shared_expert_intermediate_size",
    "block_ff_dim", "feed_forward_size", "mlp_hidden_size", "dim_ff", "ff_dim", "moe_intermediate_size",
    "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size",
    "intermediate_size_mlp", "routed_expert_intermediate_size", "head_dim", "global_head_dim", "kv_channels",
    "attention_head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "qk_head_dim", "mamba_d_head", "mamba_head_dim", "mamba_d_ssm", "mamba_headdim", "linear_key_head_dim",
    "linear_value_head_dim", "linear_head_dim", "hidden_size_per_layer_input", "laurel_rank", "rotary_dim",
    "query_pre_attn_scalar", "embedding_dim",
}  # fmt: skip


def config(model_type: str, changes: Mapping[str, Any] | None = None, width: int = 1) -> Any:
    """Make the configuration of a model of four layers, `width` times as wide as it would be.

    Raises what transformers raises where the sizes do not fit.
    """
    made = CONFIG_MAPPING[model_type]
    return made(**_merged(_widened(_merged(_sizes(made()), OWN.get(model_type, {})), width), changes or {}))


def _sizes(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        inner = vars(config).get(key)  # not by `getattr`: what differs by layer has no value of its own
        if hasattr(inner, "to_dict"):
            found[key] = _sizes(inner)
        elif key in SIZES and isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = SIZES[key]
    return found


def _widened(values: dict[str, Any], width: int) -> dict[str, Any]:
    """Multiply all numbers of channels, those of inner configurations too, by `width`."""
    return {
        key: _times(value, width) if key in CHANNELS else _widened(value, width) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def _times(value: Any, width: int) -> Any:
    return [each * width for each in value] if isinstance(value, list) else value * width


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        inner = base.get(key)
        base[key] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return base
