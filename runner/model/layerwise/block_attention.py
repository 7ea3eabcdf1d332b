"""Causal attention in blocks of queries, for calibration on processors whose bf16 products are fast and have no tiles.

torch's kernel takes twice as long there (measured on an AMD EPYC, 2048 tokens in windows of 512, the 9 heads of 64 of
SmolLM2-135M: 33 against 18 ms, a tenth of the processor time of its GPTQ). A block of queries is multiplied with the
keys up to its end, so that little above the diagonal is computed, and the softmax of a block stays in the caches.
Scores are rounded to bf16 before the softmax, as transformers' eager attention rounds them: good enough for the second
moments of a calibration; perplexities are measured with the model's own attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from runner.system.cpu import fast_bf16, flags

NAME = "causal_blocks"
SHORTEST, LONGEST = 128, 4096  # tokens of a window; of longer ones the scores of a block would take much memory


def use_blocks(model: Any, device: torch.device) -> None:
    """Let a model of transformers attend in blocks where that is faster, and where it attends by torch's kernel.

    `device` is where its layers will compute.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if device.type != "cpu" or not fast_bf16() or "amx_bf16" in flags():
        return
    if getattr(model.config, "_attn_implementation", None) != "sdpa" or not model._can_set_attn_implementation():
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: query [batch, heads, length, d], key and value [batch, groups, length, d]

    → [batch, length, heads, d]. What is not purely causal attention in bf16 goes to transformers' own.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    causal = how.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    plain = attention_mask is None and not how.get("dropout")
    plain = plain and how.get("position_bias") is None and how.get("softcap") is None
    fits = SHORTEST <= query.shape[2] == key.shape[2] <= LONGEST
    if not (causal and plain and fits and query.dtype is torch.bfloat16):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    repeats = query.shape[1] // key.shape[1]
    scale = how.get("scaling")
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    return causal_blocks(query, repeat_kv(key, repeats), repeat_kv(value, repeats)), None


def causal_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query keyᵀ + causal mask) value for [batch, heads, length, d], as [batch, length, heads, d]."""
    length = query.shape[2]
    size = min(128, max(64, length // 4))
    future = torch.full((size, size), -torch.inf, dtype=query.dtype, device=query.device).triu_(1)
    keys = key.transpose(2, 3)
    out = query.new_empty(query.shape[0], length, query.shape[1], value.shape[3])
    for begin in range(0, length, size):
        end = min(length, begin + size)
        scores = torch.matmul(query[:, :, begin:end], keys[..., :end])
        scores[..., begin:] += future[: end - begin, : end - begin]
        out[:, begin:end] = torch.matmul(scores.softmax(-1), value[:, :, :end]).transpose(1, 2)
    return out
