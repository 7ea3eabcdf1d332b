"""The module that is exported with onnxruntime's own attention: one operator in place of fifteen.

GroupQueryAttention appends new keys and values to the cache and multiplies heads in groups. Its `attention_bias` gets
the additive mask of `Decoder`, so that padding on either side and sliding windows are masked as in every other graph.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from runner.export.decoder import Decoder

_ATTENTION = "runner-fused"
OPERATOR = "com.microsoft::GroupQueryAttention"


class FusedDecoder(Decoder):
    """A `Decoder` whose attention is GroupQueryAttention; it can be exported, not run."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        AttentionInterface.register(_ATTENTION, self._attend)
        model.config._attn_implementation = _ATTENTION

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        batch, new = input_ids.shape
        before = attention_mask.shape[1] - new  # the cache can have room for more
        self._past, self._present = past, list(past)
        self._total = torch.scalar_tensor(before + new, dtype=torch.int32)
        self._last = (self._total - 1).expand(batch)  # the index of the last key, in every sequence
        mask = self._mask(attention_mask, before, new, past[0].dtype)
        cache = _NewKeys()
        out = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        return out.logits.float(), *self._present

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Emit the operator for query [b, h, n, d] and the new keys and values [b, g, n, d] → [b, n, h, d]."""
        batch, heads, new, width = query.shape
        kv_heads, at = key.shape[1], 2 * module.layer_idx
        flat = [x.transpose(1, 2).reshape(batch, new, -1) for x in (query, key, value)]
        before = self._past[at : at + 2]
        attributes: dict[str, Any] = {
            "num_heads": heads, "kv_num_heads": kv_heads, "scale": width**-0.5 if scaling is None else float(scaling),
        }  # fmt: skip
        if softcap is not None:
            attributes["softcap"] = float(softcap)
        cached = (batch, kv_heads, before[0].shape[2] + new, width)
        out, *self._present[at : at + 2] = torch.onnx.ops.symbolic_multi_out(
            OPERATOR,
            [*flat, *before, self._last, self._total, None, None, None, attention_mask],
            attributes,
            dtypes=[query.dtype] * 3,
            shapes=[(batch, new, heads * width), cached, cached],
            version=1,
        )
        return out.reshape(batch, new, heads, width), None


class _NewKeys:
    """What layers of transformers ask of a cache: it returns the new keys and values, which the operator appends."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0
