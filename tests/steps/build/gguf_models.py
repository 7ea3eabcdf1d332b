"""Tiny random models of every architecture of `build.gguf`, and building their files in this process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from runner.contracts.step_kind import Result
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host

KIND = "build.gguf"
MODEL = Path(__file__).parents[3] / "runner" / "demo" / "models" / "tiny-llama"
EXACT: dict[str, Any] = {"dense": "f32", "embedding": "f32"}
# Wide enough for blocks of 32; heads, key-value heads and the width of a head all differ.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 4096, "head_dim": 32}
_PLAIN = {"sliding_window": None, "head_dim": 16}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_GEMMA = {"sliding_window": 8, "query_pre_attn_scalar": 32, "num_hidden_layers": 4}
# Name → model type, changes of its configuration. The last norms, biases and gates are random too.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}), "llama tied": ("llama_tied", {}), "llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "yarn": ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                           "original_max_position_embeddings": 16}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False, **_PLAIN}), "qwen3": ("qwen3", {}),
    "qwen2_moe": ("qwen2_moe", {**_MIXTURE, **_PLAIN, "moe_intermediate_size": 32,
                                "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3_moe", {**_MIXTURE, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "olmo2": ("olmo2", {"head_dim": None}), "olmo2 tied": ("olmo2", {"head_dim": None, "tie_word_embeddings": True}),
    "olmoe": ("olmoe", {**_MIXTURE, "head_dim": None, "num_key_value_heads": 4}), "gemma": ("gemma", {}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", {**_GEMMA, "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
                                                         "sliding_attention"]}),
    "phi3": ("phi3", {"head_dim": None, "sliding_window": None}),
    "phi3 partly rotated": ("phi3", {"head_dim": None, "sliding_window": None, "partial_rotary_factor": 0.5}),
    "granite": ("granite", {"head_dim": None, "attention_multiplier": 0.2, "embedding_multiplier": 3.0,
                            "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "smollm3": ("smollm3", {"use_sliding_window": False, "num_hidden_layers": 4, "sliding_window": None,
                            "head_dim": None}),
    "stablelm": ("stablelm", {"head_dim": None, "use_qkv_bias": True}),
    "starcoder2": ("starcoder2", {"head_dim": None, "sliding_window": None}),
}  # fmt: skip


def model(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A tiny model with the tokenizer of the embedded one."""
    sizes = {key: value for key, value in (SIZES | changes).items() if (key, value) != ("head_dim", None)}
    tiny.save(folder, name, dtype, **sizes)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / file, folder)
    return folder


def case(folder: Path, name: str) -> Path:
    """The model of a case, with values of their own in norms and biases."""
    kind, changes = CASES[name]
    checkpoint = model(folder, kind, **changes)
    vary(checkpoint)
    return checkpoint


def vary(checkpoint: Path) -> None:
    """Give biases and norms, which a new model has all 0 and 1, values of their own."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(5)
    for name in sorted(tensors):
        if tensors[name].ndim == 1:
            tensors[name] += 0.3 * torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, path, metadata={"format": "pt"})


def built(folder: Path, checkpoint: Path, ids: torch.Tensor | None = None, **params: Any) -> tuple[Path, Result]:
    """Run the kind; return its folder and result."""
    host = Host(folder / "gguf", KIND, checkpoint, ids, **params)
    result = find(KIND).run(host)
    return host.out_dir, result
