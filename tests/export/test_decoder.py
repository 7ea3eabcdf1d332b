"""The forward that is exported, as torch runs it: in half precision, prompts of several lengths beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runner.export.decoder import Decoder, own_attention, shape_of
from runner.runtime.transformers import load
from tests import tiny

LENGTHS = (14, 10, 5, 1)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_rows_of_padding_stay_finite_in_half_precision(name: str, tmp_path: Path) -> None:
    """Scores of a row that sees nothing must not pass the lowest number: NaN there would reach every later row."""
    streamed = load(tiny.save(tmp_path, name), "cpu", torch.float16)
    own_attention(streamed.model)
    with torch.no_grad():
        for module, weight in streamed.model.named_parameters():
            if module.endswith(("q_proj.weight", "q_norm.weight")):
                weight *= 100  # scores of some tens, as models have them
    decoder, shape = Decoder(streamed.model), shape_of(streamed.config)

    def run(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        past = [torch.zeros(len(ids), shape.kv_heads, 0, shape.head_dim, dtype=torch.float16) for _ in shape.past]
        with torch.inference_mode():
            logits: torch.Tensor = decoder(ids, mask, positions, past)[0]
        return logits

    rows = [tiny.tokens(1, length) for length in LENGTHS]
    ids, mask = (torch.zeros(len(LENGTHS), LENGTHS[0], dtype=torch.int64) for _ in range(2))
    for row, tokens in enumerate(rows):
        ids[row, -tokens.shape[1] :], mask[row, -tokens.shape[1] :] = tokens[0], 1
    found = run(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
    assert bool(found.isfinite().all())
    for row, tokens in enumerate(rows):
        length = tokens.shape[1]
        alone = run(tokens, torch.ones_like(tokens), torch.arange(length)[None])[0]
        assert (found[row, -length:] - alone).abs().max() < 0.02
