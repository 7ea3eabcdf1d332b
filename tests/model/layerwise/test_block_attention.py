"""Attention in blocks against torch's own, and when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.model.layerwise import block_attention
from runner.model.layerwise.streamed_model import StreamedModel
from runner.system import cpu
from tests import tiny


@pytest.mark.parametrize("length", [64, 128, 200, 512, 515])
def test_blocks_equal_the_whole(length: int) -> None:
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64) for _ in range(3))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    torch.testing.assert_close(block_attention.causal_blocks(q, k, v).transpose(1, 2), whole)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_heads_in_bf16(groups: int, scaling: float | None) -> None:
    torch.manual_seed(groups)
    q = torch.randn(2, 4, 256, 16).bfloat16()
    k, v = (torch.randn(2, groups, 256, 16).bfloat16() for _ in range(2))
    out, weights = block_attention.attend(nn.Module(), q, k, v, None, scaling=scaling)
    key, value = (t.double().repeat_interleave(4 // groups, 1) for t in (k, v))
    exact = F.scaled_dot_product_attention(q.double(), key, value, is_causal=True, scale=scaling)
    assert weights is None
    assert out.shape == (2, 256, 4, 16)
    torch.testing.assert_close(out.double().transpose(1, 2), exact, atol=0.02, rtol=0.02)


PADDED = torch.ones(1, 1, 256, 256, dtype=torch.bool).tril() & (torch.arange(256) > 3) | torch.eye(256).bool()


@pytest.mark.parametrize(("mask", "how"), [(PADDED, {}), (None, {"is_causal": False})])
def test_what_is_not_purely_causal_goes_to_transformers(mask: torch.Tensor | None, how: dict[str, Any]) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 256, 16).bfloat16() for _ in range(3))
    own = block_attention.attend(nn.Module(), q, k, v, mask, **how)[0]
    assert torch.equal(own, sdpa_attention_forward(nn.Module(), q, k, v, mask, **how)[0])


def test_used_only_where_it_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save(tmp_path / "model", "llama")

    def chosen(model: str, *, bf16: bool, flags: frozenset[str], device: str = "cpu") -> str:
        monkeypatch.setattr(block_attention, "fast_bf16", lambda: bf16)
        monkeypatch.setattr(block_attention, "flags", lambda: flags)
        streamed = StreamedModel(folder)
        streamed.model.config._attn_implementation = model
        block_attention.use_blocks(streamed.model, torch.device(device))
        return str(streamed.model.config._attn_implementation)

    assert chosen("sdpa", bf16=True, flags=frozenset()) == block_attention.NAME
    assert chosen("sdpa", bf16=True, flags=frozenset(), device="cuda") == "sdpa"
    assert chosen("sdpa", bf16=True, flags=frozenset({"amx_bf16"})) == "sdpa"
    assert chosen("sdpa", bf16=False, flags=cpu.flags()) == "sdpa"
    assert chosen("eager", bf16=True, flags=frozenset()) == "eager"


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES])
def test_a_model_answers_as_with_its_own_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever its windows, its groups of heads and the caps of its scores are."""
    from transformers import AutoModelForCausalLM

    folder = tiny.save(tmp_path / name, name, torch.bfloat16)
    ids = tiny.tokens(2, 48)

    def logits(dtype: torch.dtype, blocks: bool) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        if blocks:
            block_attention.use_blocks(model, torch.device("cpu"))
        with torch.no_grad():
            return model(ids, use_cache=False).logits.float()  # type: ignore[no-any-return]

    exact, own = logits(torch.float32, False), logits(torch.bfloat16, False)
    calls: list[int] = []
    inner = block_attention.causal_blocks

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        calls.append(query.shape[2])
        return inner(query, key, value)

    monkeypatch.setattr(block_attention, "causal_blocks", counted)
    monkeypatch.setattr(block_attention, "fast_bf16", lambda: True)
    monkeypatch.setattr(block_attention, "flags", frozenset)
    monkeypatch.setattr(block_attention, "SHORTEST", 16)
    found = logits(torch.bfloat16, True)
    assert (found - exact).norm() < 2 * (own - exact).norm()
    slides = {"mistral": 0, "qwen2": 1, "gemma3_text": 0, "gemma2": 0}  # layers that see all that came before
    assert len(calls) == slides.get(name, 3)
