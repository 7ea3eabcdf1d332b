"""The module that is exported: a forward with the cache as inputs and outputs, and explicit attention.

One form of mask serves every architecture. Both the ONNX graph and the compiled package are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache

from runner.export.supported import BY_TYPE, MASKS, SLIDING

_ATTENTION = "runner"


@dataclass(frozen=True)
class Shape:
    """The sizes on which the inputs and outputs of a graph depend."""

    layers: int
    kv_heads: int
    head_dim: int

    @property
    def past(self) -> list[str]:
        return [f"past_key_values.{i}.{part}" for i in range(self.layers) for part in ("key", "value")]

    @property
    def present(self) -> list[str]:
        return [f"present.{i}.{part}" for i in range(self.layers) for part in ("key", "value")]


def shape_of(config: Any) -> Shape:
    """Return the sizes from a configuration of transformers."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(config.num_hidden_layers, kv_heads, head_dim)


def own_attention(model: Any) -> None:
    """Set `_attention`, which takes the masks of `Decoder`, as the attention of a transformers model."""
    AttentionInterface.register(_ATTENTION, _attention)
    model.config._attn_implementation = _ATTENTION


class Decoder(nn.Module):
    """Token ids, mask, positions and the cache → logits in float32, and the cache with the new tokens.

    The cache has every position for every layer: a sliding window only limits the mask.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        mask = self._mask(attention_mask, past[0].shape[2], input_ids.shape[1], past[0].dtype)
        out = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        layers: list[Any] = cache.layers
        present = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return out.logits.float(), *present

    def _mask(self, given: torch.Tensor, past: int, new: int, dtype: torch.dtype) -> Any:
        """Return an additive mask [batch, 1, new, past + new], or one for each kind of layer."""
        query = (past + torch.arange(new, device=given.device))[:, None]
        key = torch.arange(past + new, device=given.device)[None, :]
        causal = (key <= query)[None, None] & (given != 0)[:, None, None, :]
        return self._masks(causal, query, key, dtype)

    def _masks(self, causal: torch.Tensor, query: torch.Tensor, key: torch.Tensor, dtype: torch.dtype) -> Any:
        """Return the mask of each kind of layer: `query` [new, 1] and `key` [1, total] are positions."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        near = causal & (key > query - window)[None, None] if window else causal
        kind = MASKS[config.model_type]
        if kind == BY_TYPE:
            masks = {"full_attention": causal, "sliding_attention": near}
            return {name: _additive(masks[name], dtype) for name in sorted(set(config.layer_types))}
        return _additive(near if kind == SLIDING else causal, dtype)


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert a boolean mask to an additive one, with half of the lowest number where it is False.

    A score plus the lowest number itself would be −∞ in float16: a row of padding, which attends to nothing, would
    become NaN, and every later row would read it as 0 · NaN.
    """
    return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), torch.finfo(dtype).min / 2)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute softmax(q·kᵀ·scaling + mask)·v, with the query heads of a group stacked so that keys are not repeated.

    query [b, h, n, d]; key, value [b, h / groups, t, d] → [b, n, h, d]
    """
    batch, heads, new, width = query.shape
    kv_heads = key.shape[1]
    query = query * (width**-0.5 if scaling is None else scaling)
    grouped = heads != kv_heads
    if grouped:
        query = query.reshape(batch, kv_heads, heads // kv_heads * new, width)
    scores = query @ key.transpose(2, 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if grouped:
        scores = scores.reshape(batch, heads, new, -1)
    weights = torch.softmax(scores + attention_mask, dim=-1)
    if grouped:
        weights = weights.reshape(batch, kv_heads, heads // kv_heads * new, -1)
    out = weights @ value
    if grouped:
        out = out.reshape(batch, heads, new, -1)
    return out.transpose(1, 2), None
