"""A streamed forward equals the plain one, for every architecture, file layout and type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runner.model.layerwise.forward_modes import forward
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.streamed_model import StreamedModel
from tests.tiny import ARCHITECTURES, save, tokens


def streamed_logits(folder: Path, ids: torch.Tensor, scratch: Path) -> torch.Tensor:
    streamed_model = StreamedModel(folder)
    scratch.mkdir()
    flow = HiddenStates(streamed_model, ids, scratch)
    with torch.no_grad():
        assert flow.begin(0, [])
        for index in range(len(streamed_model)):
            lane = flow.lane(0, index, streamed_model.load(index))
            for span in flow.spans:
                lane.write(span[0], forward(lane, span))
            streamed_model.free(index)
            flow.drop(index)
        streamed_model.load_rest(embedding=False)
        final = flow.file(0, len(streamed_model)).read(0, ids.shape[0])
        return streamed_model.logits(final, torch.arange(ids.shape[1]))


def plain_logits(folder: Path, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
        return logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name)
    ids = tokens()
    expected = plain_logits(folder, ids, torch.float32)
    assert expected.std() > 0.1
    torch.testing.assert_close(streamed_logits(folder, ids, tmp_path / "scratch"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 1e-3)])
def test_half_precision_and_shards(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "qwen3", dtype=dtype, shard="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    ids = tokens()
    expected = plain_logits(folder, ids, torch.float32)
    actual = streamed_logits(folder, ids, tmp_path / "scratch")
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


def test_one_layer(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", num_hidden_layers=1)
    ids = tokens()
    expected = plain_logits(folder, ids, torch.float32)
    torch.testing.assert_close(streamed_logits(folder, ids, tmp_path / "scratch"), expected, rtol=1e-4, atol=1e-4)
