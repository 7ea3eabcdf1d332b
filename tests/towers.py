"""Tiny random models of language models with a tower for images, and questions about an image for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

IMAGE = 120  # the token that stands for a part of an image
_TEXT: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
# As many layers as the language model has, so that the two lists cannot be told apart by their length.
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {
        "text_config": {**_TEXT, "model_type": "gemma3_text", "sliding_window": 8, "query_pre_attn_scalar": 8},
        "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4, "image_token_index": IMAGE, "boi_token_index": 121, "eoi_token_index": 122,
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model", "projection_dim": 32},
        "image_token_index": IMAGE, "image_seq_length": 4,
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8},
        "image_token_index": IMAGE, "spatial_merge_size": 1,
    },
    "qwen2_5_vl": {
        "text_config": {
            **_TEXT, "model_type": "qwen2_5_vl_text",
            "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        "vision_config": {
            "depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "fullatt_block_indexes": [1], "window_size": 56,
        },
        "image_token_id": IMAGE, "vision_start_token_id": 121, "vision_end_token_id": 122, "video_token_id": 123,
    },
}  # fmt: skip


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a random model into `folder`."""
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**{**CONFIGS[name], **changes}))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.to(dtype).save_pretrained(folder)
    return folder


def question(name: str) -> dict[str, torch.Tensor]:
    """The inputs of a forward on text around an image of 28 × 28 random pixels."""
    generator = torch.Generator().manual_seed(2)
    parts = 1 if name == "qwen2_5_vl" else 4
    ids = torch.tensor([[1, 5, 9, 121, *[IMAGE] * parts, 122, 17, 33]])
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    if name == "gemma3":
        asked["token_type_ids"] = (ids == IMAGE).long()
    if name == "mistral3":
        asked["image_sizes"] = torch.tensor([[28, 28]])
    if name == "qwen2_5_vl":
        asked["pixel_values"] = torch.randn(4, 3 * 2 * 14 * 14, generator=generator)
        asked["image_grid_thw"] = torch.tensor([[1, 2, 2]])
        asked["mm_token_type_ids"] = (ids == IMAGE).long()
    return asked
