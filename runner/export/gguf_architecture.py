"""The architectures of llama.cpp: which module of transformers is which of their tensors, and what they compute.

Facts are from llama.cpp's conversion/*.py and src/models/*.cpp. Imported by the planner: no torch, no gguf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.contracts.model_config import ModelConfig

FILE = "model.gguf"
EXPERTS = "experts.*."  # stands for each expert of a mixture, in the name of a module

# Module of transformers after "model.layers.N." → tensor of llama.cpp after "blk.N.".
_ATTENTION = {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"} | {"self_attn.o_proj": "attn_output"}
_MLP = {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
_BEFORE = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_QK_NORMS = {f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"}
_MIXTURE = {"mlp.gate": "ffn_gate_inp"} | {
    f"mlp.{EXPERTS}{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")
}
_MIXTRAL = {"block_sparse_moe.gate": "ffn_gate_inp"} | {
    f"block_sparse_moe.{EXPERTS}{part}": f"ffn_{name}_exps"
    for part, name in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
}
_LLAMA = _BEFORE | _ATTENTION | _MLP
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_SHARED = {f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")}
_GEMMA = _ATTENTION | _MLP | _AFTER | {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm"}
_SILU = {"hidden_act": ("silu",)}
_GELU = {"hidden_activation": ("gelu_pytorch_tanh",)}


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp.

    layers         module of a decoder layer → tensor; that of an expert stands for those of all experts
    biases         modules that may have a bias
    demands        keys of config.json with the values that the architecture computes; None and False also mean that the
                   key is missing
    needs          keys of config.json without which its numbers are not known
    permuted       it rotates neighbours of a head, which needs another order of the rows of queries and keys
    shifted_norms  its norms multiply by what is stored; in transformers' model by 1 more
    layer_norm     its norms subtract the mean
    windows        layers may attend to a sliding window
    scalings       kinds of rotary embeddings
    head           "tied": it has no head of its own; "own": it needs one, also where it equals the embedding
    scales         keys of config.json → keys of the file, of numbers that it multiplies by
    """

    name: str
    layers: Mapping[str, str] = field(default_factory=lambda: _LLAMA)
    biases: tuple[str, ...] = ()
    demands: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _SILU)
    needs: tuple[str, ...] = ("intermediate_size",)
    permuted: bool = False
    shifted_norms: bool = False
    layer_norm: bool = False
    windows: bool = False
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    head: str = ""
    scales: Mapping[str, str] = field(default_factory=dict)


_LLAMA_FAMILY: dict[str, Any] = {"permuted": True, "scalings": ("default", "linear", "yarn", "llama3")}
_ALL_BIASES = (*_QKV, "self_attn.o_proj", *_MLP)
_NO_WINDOW = {"sliding_window": (None,)}

# Model type of config.json → architecture. Each was compared with transformers, as tiny random models, in llama.cpp.
TYPES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", biases=_ALL_BIASES, demands=_SILU | _NO_WINDOW, **_LLAMA_FAMILY),
    "mistral": Architecture("llama", demands=_SILU | _NO_WINDOW, **_LLAMA_FAMILY),
    "mixtral": Architecture("llama", _BEFORE | _ATTENTION | _MIXTRAL, demands=_SILU | _NO_WINDOW, **_LLAMA_FAMILY),
    "qwen2": Architecture("qwen2", biases=_QKV, demands=_SILU | {"use_sliding_window": (None, False)}),
    "qwen3": Architecture("qwen3", _LLAMA | _QK_NORMS, demands=_SILU | {"use_sliding_window": (None, False)}),
    "qwen2_moe": Architecture(
        "qwen2moe",
        _BEFORE | _ATTENTION | _MIXTURE | _SHARED | {"mlp.shared_expert_gate": "ffn_gate_inp_shexp"},
        biases=_QKV,
        demands=_SILU | {
            "norm_topk_prob": (None, False), "decoder_sparse_step": (1,), "mlp_only_layers": (None, []),
            "use_sliding_window": (None, False),
        },
        needs=("moe_intermediate_size", "shared_expert_intermediate_size"),
    ),
    "qwen3_moe": Architecture(
        "qwen3moe",
        _BEFORE | _ATTENTION | _QK_NORMS | _MIXTURE,
        demands=_SILU | {
            "norm_topk_prob": (True,), "decoder_sparse_step": (1,), "mlp_only_layers": (None, []),
            "use_sliding_window": (None, False),
        },
        needs=("moe_intermediate_size",),
    ),
    "olmo2": Architecture("olmo2", _ATTENTION | _MLP | _AFTER | _QK_NORMS, head="own"),
    "olmoe": Architecture(
        "olmoe", _BEFORE | _ATTENTION | _QK_NORMS | _MIXTURE, head="own",
        demands=_SILU | {"norm_topk_prob": (None, False), "clip_qkv": (None,)},
    ),
    "gemma": Architecture(
        "gemma", demands={"hidden_act": ("gelu_pytorch_tanh",)}, needs=("intermediate_size", "head_dim"),
        shifted_norms=True, head="tied",
    ),
    "gemma2": Architecture(
        "gemma2", _GEMMA, demands=_GELU, needs=("intermediate_size", "head_dim", "query_pre_attn_scalar"),
        shifted_norms=True, windows=True, head="tied",
        scales={"attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping"},
    ),
    "gemma3_text": Architecture(
        "gemma3", _GEMMA | _QK_NORMS,
        demands=_GELU | {"attn_logit_softcapping": (None,), "use_bidirectional_attention": (None, False)},
        needs=("intermediate_size", "head_dim", "query_pre_attn_scalar"), shifted_norms=True, windows=True,
        scales={"final_logit_softcapping": "final_logit_softcapping"},
    ),
    "phi3": Architecture(
        "phi3", _BEFORE | {
            "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        scalings=("default",),
    ),
    "granite": Architecture(
        "granite", permuted=True, needs=("intermediate_size", "logits_scaling"),
        scales={"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
                "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"},
    ),
    "smollm3": Architecture("smollm3", permuted=True, demands=_SILU | {"use_sliding_window": (None, False)}),
    "stablelm": Architecture(
        "stablelm", biases=(*_QKV, *_BEFORE), layer_norm=True, head="own",
        demands=_SILU | {"use_parallel_residual": (None, False), "qk_layernorm": (None, False)},
    ),
    "starcoder2": Architecture(
        "starcoder2", _BEFORE | _ATTENTION | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
        biases=(*_BEFORE, *_QKV, "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj"), layer_norm=True,
        demands={"hidden_act": ("gelu_pytorch_tanh",)} | _NO_WINDOW,
    ),
}  # fmt: skip


def of(config: ModelConfig) -> Architecture:
    """Return the architecture of a model that `gguf_refusals.refuse` lets pass."""
    return TYPES[config.model_type]


def described(config: ModelConfig) -> dict[str, Any]:
    """Return what engine.json says that config.json knows already."""
    return {
        "file": FILE, "architecture": of(config).name,
        "vocabulary": config.vocabulary_size, "context": config.context or None,
    }  # fmt: skip
