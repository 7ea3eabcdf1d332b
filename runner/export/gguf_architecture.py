"""What config.json says that llama.cpp's architectures hold, and what it must not say.

These keys of config.json belong to one architecture and one file format, so that they are read here and not by
`runner.contracts.model_config`. Imported by the planner: no torch, no gguf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.contracts.model_config import ModelConfig

FILE = "model.gguf"
# Model types that were compared with transformers and llama.cpp → llama.cpp's architecture.
TYPES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
ANOTHER = "use build.onnx, or deploy the checkpoint itself"


@dataclass(frozen=True)
class Llama:
    """The numbers of a model in GGUF. `kv_heads` are the heads of keys and values, `width` is that of a head.

    `tied` is whether config.json lets the head be the embedding; `permuted` whether llama.cpp rotates neighbours of a
    head, which needs another order of rows of queries and keys.
    """

    architecture: str
    permuted: bool
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
        return f"models of the type `{shown}` cannot be written as GGUF; {', '.join(TYPES)} can", ANOTHER
    architecture = TYPES[config.model_type]
    if "sliding_attention" in (config.raw.get("layer_types") or []) or config.raw.get("use_sliding_window"):
        return f"some layers attend to a sliding window, which GGUF's {architecture} models do not have", ANOTHER
    absent = ("attention_bias", "mlp_bias", *(("sliding_window",) if architecture == "llama" else ()))
    for key in absent:
        if config.raw.get(key):
            return (
                f"config.json has `{key}` = {config.raw[key]}, which GGUF's {architecture} models do not have",
                ANOTHER,
            )
    if (act := config.raw.get("hidden_act", "silu")) != "silu":
        return f"config.json has `hidden_act` = {act}; GGUF's {architecture} models have silu", ANOTHER
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
    architecture = TYPES[config.model_type]
    return Llama(
        architecture=architecture,
        permuted=architecture == "llama",
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
        "file": FILE, "architecture": TYPES[config.model_type],
        "vocabulary": config.vocabulary_size, "context": config.context or None,
    }  # fmt: skip
