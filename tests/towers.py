"""Tiny random models that wrap a language model in towers, and questions about an image or a sound for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runner.model.architecture import supported
from tests import model_types

MEDIA = 120  # the token that stands for a part of an image or a sound
_GENERATOR = 2


@dataclass(frozen=True)
class Tower:
    """What differs from the tiny configuration of a type, and the inputs of a question beside its text.

    tokens   how many tokens stand for the image or sound
    shapes   of the inputs that are drawn at random
    inputs   further inputs
    marked   the name of an input that is 1 at those tokens, where the type has one
    """

    changes: Mapping[str, Any]
    tokens: int
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    marked: str | None = None


_ID, _INDEX = {"image_token_id": MEDIA}, {"image_token_index": MEDIA}
_ENDS = {**_ID, "vision_start_token_id": 121, "vision_end_token_id": 122, "video_token_id": 123}
_GLM_ENDS = {**_ID, "image_start_token_id": 121, "image_end_token_id": 122, "video_token_id": 123}
_PIXELS = {"pixel_values": (1, 3, 32, 32)}
_CROPS = {"pixel_values": (1, 2, 3, 32, 32)}
_PATCHES = {"pixel_values": (16, 3 * 2 * 8 * 8)}
_GRID = {"image_grid_thw": [[1, 4, 4]]}
_SIZE = {"image_sizes": [[32, 32]]}
_PINPOINTS = {"image_grid_pinpoints": [[32, 32], [32, 64]]}
_TYPES = "mm_token_type_ids"


def _sections(*sections: int, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}
    return {"text_config": {"rope_parameters": rope}}


_QWEN3 = {
    **_ENDS, "vision_config": {"depth": 2, "out_hidden_size": 32, "num_position_embeddings": 16,
                               "deepstack_visual_indexes": [0]},
}  # fmt: skip
_GLM = Tower(
    {**_GLM_ENDS, **_sections(1, 1, 2, partial_rotary_factor=1.0),
     "vision_config": {"depth": 2, "out_hidden_size": 32}},
    4, _PATCHES, _GRID, _TYPES,
)  # fmt: skip
_IDEFICS3 = Tower({**_ID, "scale_factor": 2}, 4, {"pixel_values": (1, 1, 3, 32, 32)})
_GEMMA4 = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "global_head_dim": 8, "patch_size": 8, "pooling_kernel_size": 2,
    "position_embedding_size": 16, "default_output_length": 4,
}  # fmt: skip

# Their vision has as many layers as the language model where that is possible, so that length does not tell them apart.
TOWERS: Mapping[str, Tower] = {
    "aria": Tower({**_INDEX, "projector_patch_to_query_dict": {"16": 4}}, 4, _PIXELS),
    "aya_vision": Tower({**_INDEX, "downsample_factor": 2}, 4, _PIXELS),
    "cohere2_vision": Tower({**_ID, "downsample_factor": 2}, 4, _PIXELS),
    "deepseek_vl": Tower(_ID, 16, _PIXELS),
    "gemma3": Tower(
        {**_INDEX, "mm_tokens_per_image": 4, "boi_token_index": 121, "eoi_token_index": 122}, 4, _PIXELS,
        marked="token_type_ids",
    ),
    "gemma4": Tower(
        {**_ID, "boi_token_id": 121, "eoi_token_id": 122, "audio_token_id": 123, "video_token_id": 124,
         "text_config": dict(model_types.SHARING), "audio_config": None, "vision_config": _GEMMA4},
        4, {"pixel_values": (1, 16, 3 * 8 * 8)},
        {"image_position_ids": [[[row, column] for row in range(4) for column in range(4)]]}, _TYPES,
    ),
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm_ocr": _GLM,
    "got_ocr2": Tower(_INDEX, 1, _PIXELS),
    "idefics2": Tower(
        {**_ID, "perceiver_config": {"resampler_n_latents": 4}}, 4, {"pixel_values": (1, 1, 3, 32, 32)}
    ),
    "idefics3": _IDEFICS3,
    "internvl": Tower(
        {**_ID, "image_seq_length": 4, "vision_config": {"image_size": [32, 32], "patch_size": [8, 8]}}, 4, _PIXELS
    ),
    "lfm2_vl": Tower(
        {**_ID, "downsample_factor": 2, "vision_config": {"num_patches": 16}}, 4, {"pixel_values": (1, 16, 3 * 8 * 8)},
        {"spatial_shapes": [[4, 4]], "pixel_attention_mask": [[1] * 16]},
    ),
    "lighton_ocr": Tower({**_ID, "spatial_merge_size": 2}, 4, _PIXELS, _SIZE),
    "llama4": Tower(
        {**_ID, **_INDEX, "vision_config": {
            "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32, "intermediate_size": 128,
            "pixel_shuffle_ratio": 0.5,
        }}, 4, _PIXELS,
    ),
    "llava": Tower({**_INDEX, "image_seq_length": 16}, 16, _PIXELS),
    "llava_next": Tower({**_INDEX, **_PINPOINTS}, 36, _CROPS, _SIZE),
    "llava_onevision": Tower({**_INDEX, **_PINPOINTS}, 36, _CROPS, _SIZE),
    "minimax_m3_vl": Tower(_ID, 4, _PATCHES, _GRID),
    "mistral3": Tower({**_INDEX, "spatial_merge_size": 2}, 4, _PIXELS, _SIZE),
    "ovis2": Tower(_ID, 16, _PIXELS),
    "paddleocr_vl": Tower({**_ENDS, **_sections(1, 1, 2)}, 4, {"pixel_values": (16, 3, 8, 8)}, _GRID, _TYPES),
    "paligemma": Tower(
        {**_ID, **_INDEX, "projection_dim": 32, "vision_config": {"projection_dim": 32}}, 16, _PIXELS,
        marked="token_type_ids",
    ),
    "qianfan_ocr": Tower(_ID, 1, _PIXELS),
    "qwen2_audio": Tower(
        {"audio_token_index": MEDIA, "audio_token_id": MEDIA,
         "audio_config": {"num_mel_bins": 8, "max_source_positions": 8}},
        4, {"input_features": (1, 8, 16)}, {"feature_attention_mask": [[1] * 16]},
    ),
    "qwen2_5_vl": Tower(
        {**_ENDS, **_sections(1, 1, 2), "vision_config": {
            "depth": 4, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 32, "patch_size": 8}},
        4, _PATCHES, _GRID, _TYPES,
    ),
    "qwen2_vl": Tower({**_ENDS, **_sections(1, 1, 2)}, 4, _PATCHES, _GRID, _TYPES),
    "qwen3_5": Tower(_QWEN3, 4, _PATCHES, _GRID, _TYPES),
    "qwen3_5_moe": Tower(_QWEN3, 4, _PATCHES, _GRID, _TYPES),
    "qwen3_vl": Tower({**_QWEN3, **_sections(2, 1, 1)}, 4, _PATCHES, _GRID, _TYPES),
    "qwen3_vl_moe": Tower({**_QWEN3, **_sections(2, 1, 1)}, 4, _PATCHES, _GRID, _TYPES),
    "smolvlm": _IDEFICS3,
    "video_llama_3": Tower(
        _ID, 4, {"pixel_values": (16, 3 * 8 * 8)}, {**_GRID, "image_merge_sizes": [2]},
    ),
    "vipllava": Tower({**_INDEX, "vision_feature_layers": [-1, -2]}, 16, _PIXELS),
    "voxtral": Tower(
        {"audio_token_id": MEDIA,
         "audio_config": {"num_mel_bins": 8, "max_source_positions": 8, "intermediate_size": 64}},
        4, {"input_features": (1, 8, 16)},
    ),
}  # fmt: skip


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a random model into `folder`."""
    import transformers

    torch.manual_seed(0)
    config = model_types.config(name, {**TOWERS[name].changes, **changes})
    model = getattr(transformers, supported.auto_class(name)).from_config(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    if dtype != torch.float32:  # else the complex tables of llama4 would be cast
        model.to(dtype)
    model.save_pretrained(folder)
    return folder


def question(name: str) -> dict[str, torch.Tensor]:
    """The inputs of a forward on text around a random image or sound."""
    tower, generator = TOWERS[name], torch.Generator().manual_seed(_GENERATOR)
    ids = torch.tensor([[1, 5, 9, 121, *[MEDIA] * tower.tokens, 122, 17, 33]])
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked |= {key: torch.randn(*shape, generator=generator) for key, shape in tower.shapes.items()}
    asked |= {key: torch.tensor(value) for key, value in tower.inputs.items()}
    if tower.marked is not None:
        asked[tower.marked] = (ids == MEDIA).long()
    return asked


def unlike(name: str) -> dict[str, torch.Tensor]:
    """The same question about another image or sound."""
    return {**question(name), **{key: -question(name)[key] for key in TOWERS[name].shapes}}
