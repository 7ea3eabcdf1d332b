"""config.json of a model whose embeddings and head no longer share a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.model_config import ModelConfig

_KEY = "tie_word_embeddings"


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of config.json that ties no embeddings, at the top and in the part of a language model in it."""
    found = {**config, _KEY: False}
    inner = found.get("text_config")
    if isinstance(inner, Mapping) and _KEY in inner:
        found["text_config"] = {**inner, _KEY: False}
    return found


def may_tie(config: ModelConfig) -> bool:
    """Return whether the head may be the embedding: what is stored decides where both are (`tied_weights`)."""
    return bool(config.text.get(_KEY, True))
