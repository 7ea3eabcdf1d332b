"""What config.json says of a model, read once: no other module looks up its keys. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a language model. Numbers are 0 and names empty where config.json does not give them.

    raw              config.json itself, for writing it and for what one architecture or file format alone has
    text             the part of it that describes the language model, where others (images, sound) are described too
    model_type       "llama"
    architecture     the class of the model: "LlamaForCausalLM"; the model type where none is named
    layer_count      the number of decoder layers; `layer_count_key` is the name of its key
    context          the positions that the model has; `context_key` is the name of its key
    quantization     how the weights are stored: quantization_config
    """

    raw: Mapping[str, Any]
    text: Mapping[str, Any]
    model_type: str
    architecture: str
    hidden_size: int
    layer_count: int
    layer_count_key: str
    heads: int
    vocabulary_size: int
    context: int
    context_key: str
    quantization: Mapping[str, Any] | None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """The configuration in a parsed config.json. A value of the wrong type counts as missing."""
        inner, quantization = raw.get("text_config"), raw.get("quantization_config")
        text = inner if isinstance(inner, Mapping) else raw
        model_type, classes = raw.get("model_type"), raw.get("architectures")
        named = isinstance(classes, list) and classes and isinstance(classes[0], str)
        context_key, context = _first(text, _CONTEXT)
        layer_count_key, layer_count = _first(text, _LAYERS)
        return cls(
            raw=raw,
            text=text,
            model_type=model_type if isinstance(model_type, str) else "",
            architecture=str(classes[0] if named and classes else model_type or "unknown"),
            hidden_size=_first(text, _HIDDEN)[1],
            layer_count=layer_count,
            layer_count_key=layer_count_key,
            heads=_first(text, _HEADS)[1],
            vocabulary_size=_first(text, ("vocab_size",))[1],
            context=context,
            context_key=context_key,
            quantization=quantization if isinstance(quantization, Mapping) else None,
        )

    @property
    def rotary(self) -> Mapping[str, Any]:
        """How rotary frequencies are made: `rope_parameters`, or `rope_scaling` of files before transformers 5."""
        found = self.text.get("rope_parameters") or self.text.get("rope_scaling")
        return found if isinstance(found, Mapping) else {}


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, int]:
    """The first key that holds an integer, and that integer; ("", 0) where none does."""
    found = ((key, value) for key in keys if type(value := config.get(key)) is int)
    return next(found, ("", 0))
