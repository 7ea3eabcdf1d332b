"""What config.json says of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.model.checkpoint.stored_types import main_type


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def hidden_size(config: Mapping[str, Any]) -> int:
    text = text_config(config)
    return int(text.get("hidden_size") or text.get("n_embd") or text.get("d_model") or 0)


def is_half(facts: CheckpointFacts) -> bool:
    return stored_type(facts) in ("bfloat16", "float16")


def stored_type(facts: CheckpointFacts) -> str:
    """The type that most weights are stored in, whatever config.json says: "bfloat16"."""
    return main_type(facts.tensors.values())
