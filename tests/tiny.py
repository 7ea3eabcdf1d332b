"""Tiny random checkpoints of many architectures, made on the spot."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED | {"tie_word_embeddings": False},
    "llama_tied": GROUPED | {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": GROUPED | {"sliding_window": 8},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": GROUPED | {"head_dim": 16},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": GROUPED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": GROUPED | {"original_max_position_embeddings": 64},
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
             "eos_token_id": 2},
    "opt": {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "max_position_embeddings": 64, "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": COMMON | {"rotary_pct": 0.25},
}  # fmt: skip
# Those that few tests need, each of which says why.
FURTHER = (
    "mixtral", "qwen2_moe", "qwen3_moe", "olmo2", "olmoe", "gemma", "granite", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip


def save(
    folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, shard: str | None = None, **changes: Any
) -> Path:
    """Write a random checkpoint of the named architecture into `folder`.

    Weights are larger than transformers' own initialization, so that outputs differ visibly between tokens. Each
    checkpoint is made once per process; a test gets a copy of its own, which it may change.
    """
    made, state = _made(name, dtype, shard, json.dumps(changes, sort_keys=True))
    shutil.copytree(made, folder, dirs_exist_ok=True)
    torch.set_rng_state(state)  # as after making it: later random numbers do not depend on which test came first
    return folder


@functools.cache
def _made(name: str, dtype: torch.dtype, shard: str | None, changes: str) -> tuple[Path, torch.Tensor]:
    """Make a checkpoint in the process's own folder; returns it and the state of the generator afterwards."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = (GROUPED if name in FURTHER else ARCHITECTURES[name]) | json.loads(changes)
    config = AutoConfig.for_model(values.pop("model_type", name), **values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model = model.to(dtype)
    model.config.dtype = dtype
    folder = Path(tempfile.mkdtemp(dir=_shared())) / "model"
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder, torch.get_rng_state()


@functools.cache
def _shared() -> Path:
    """Make the folder of this process's checkpoints; it is removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def tokens(windows: int = 6, length: int = 24, vocabulary: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocabulary, (windows, length), generator=generator)


def letters(folder: Path) -> Path:
    """Give a checkpoint a tokenizer whose tokens are the letters a to z."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(97 + n): 3 + n for n in range(26)}}
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def byte_level(folder: Path) -> Path:
    """Give a checkpoint the smallest tokenizer that GGUF holds: byte-level BPE of the letters a to z, no merges."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(97 + n): 3 + n for n in range(26)}}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": split, "post_processor": None, "decoder": split,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
