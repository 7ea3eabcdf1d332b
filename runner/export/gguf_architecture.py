"""What config.json says that llama.cpp's `llama` architecture holds, and what it must not say.

These keys of config.json belong to one architecture and one file format, so that they are read here and not by
`runner.contracts.model_config`. Imported by the planner: no torch, no gguf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.contracts.model_config import ModelConfig

FILE = "model.gguf"
TYPES = ("llama", "mistral")  # what was compared with transformers; both are llama.cpp's "llama"
ANOTHER = "use build.onnx, or deploy the checkpoint itself"


@dataclass(frozen=True)
class Llama:
    """The numbers of a `llama` model in GGUF. `kv_heads` are the heads of keys and values, `width` is that of a head.

    `tied` is whether config.json lets the head be the embedding.
    """

    heads: int
    kv_heads: int
    width: int
    intermediate: int
    rope_base: float
    norm_epsilon: float
    tied: bool


def refuse(config: ModelConfig) -> tuple[str, str] | None:
    """Why a model cannot be written: (what is wrong, remedy). None: it can."""
    if config.model_type not in TYPES:
        shown = config.model_type
        return f"models of the type `{shown}` cannot be written as GGUF; {' and '.join(TYPES)} can", ANOTHER
    for key in ("attention_bias", "mlp_bias", "sliding_window"):
        if config.raw.get(key):
            return f"config.json has `{key}` = {config.raw[key]}, which GGUF's llama models do not have", ANOTHER
    if (act := config.raw.get("hidden_act", "silu")) != "silu":
        return f"config.json has `hidden_act` = {act}; GGUF's llama models have silu", ANOTHER
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.raw.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            return f"the rotary embedding is of the type `{kind}`; only `default` is written as GGUF", ANOTHER
    return None


def llama(config: ModelConfig) -> Llama:
    """The numbers of a model that `refuse` lets pass."""
    raw = config.raw
    rope = raw.get("rope_parameters") or {}
    return Llama(
        heads=config.heads,
        kv_heads=int(raw.get("num_key_value_heads") or config.heads),
        width=int(raw.get("head_dim") or config.hidden_size // config.heads),
        intermediate=int(raw["intermediate_size"]),
        rope_base=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        norm_epsilon=float(raw["rms_norm_eps"]),
        tied=bool(raw.get("tie_word_embeddings")),
    )


def described(config: ModelConfig) -> dict[str, Any]:
    """What engine.json says that config.json knows already."""
    return {
        "file": FILE, "architecture": "llama", "vocabulary": config.vocabulary_size, "context": config.context or None,
    }  # fmt: skip
