"""Write genai_config.json, by which onnxruntime-genai runs the graph of a folder.

The keys are those of onnxruntime-genai 0.18 (`Config` in src/config.h).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.contracts.model_config import ModelConfig
from runner.data import special_tokens
from runner.data.tokenizer import Tokenizer
from runner.export.decoder import Shape

FILE = "genai_config.json"
# The types of decoders that it knows by name; every other model type is the generic one.
TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")
GENERIC = "decoder"
# Of a text, where nothing else is asked for: onnxruntime-genai allocates a shared cache of so many positions.
_LONGEST = 4096


def config(
    folder: Path, model: ModelConfig, shape: Shape, file: str, context: int, *, in_place: bool
) -> dict[str, Any] | None:
    """Return genai_config.json for the graph `file` in `folder`, whose tokenizer is there.

    `in_place` says that the graph writes keys and values into the cache that it is given (`past_present_share_buffer`).
    None where the folder has no tokenizer, or nothing there says which token ends a text, as it refuses such folders.
    """
    if not (folder / "tokenizer.json").is_file():
        return None
    eos = _ids(folder, model, "eos")
    if not eos and (declared := Tokenizer(folder).eos) is not None:
        eos = [declared]
    if not eos:
        return None
    bos, pad = _ids(folder, model, "bos") or eos, _ids(folder, model, "pad") or eos
    return {
        "model": {
            "type": model.model_type if model.model_type in TYPES else GENERIC,
            "vocab_size": model.vocabulary_size,
            "context_length": context,
            "bos_token_id": bos[0],
            "eos_token_id": eos if len(eos) > 1 else eos[0],
            "pad_token_id": pad[0],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file,
                "hidden_size": model.hidden_size,
                "head_size": shape.head_dim,
                "num_attention_heads": model.heads,
                "num_key_value_heads": shape.kv_heads,
                "num_hidden_layers": shape.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(context, _LONGEST) if in_place else context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": in_place,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def _ids(folder: Path, model: ModelConfig, name: str) -> list[int]:
    """Return the ids of a special token, from generation_config.json or else config.json."""
    for given in (special_tokens.read_object(folder / "generation_config.json"), model.raw):
        if found := special_tokens.ids(given, name):
            return found
    return []
