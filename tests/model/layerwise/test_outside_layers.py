"""What surrounds the decoder layers, on architectures that return, embed and compute logits in ways of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import RecipeError
from runner.model.layerwise.streamed_model import StreamedModel
from tests.model.layerwise.test_final_hidden import plain_logits, streamed_logits
from tests.tiny import tokens

SMALL: dict[str, Any] = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WHISPER = SMALL | {
    "d_model": 32, "decoder_layers": 3, "encoder_layers": 1, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "max_target_positions": 64,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    # layers return a list, and the model wants one
    "openai-gpt": {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    # the embedding is narrower than the hidden states
    "opt": SMALL | {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                    "word_embed_proj_dim": 16, "max_position_embeddings": 64},
    # logits of every position, whatever is asked for
    "whisper": WHISPER,
    # tables that its own code computes, which no checkpoint holds
    "falcon_h1": SMALL | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8,
                          "mamba_d_head": 8, "mamba_d_state": 16, "mamba_chunk_size": 16, "mamba_n_groups": 1,
                          "mlp_multipliers": [0.5, 2.0], "ssm_multipliers": [0.5, 2.0, 1.5, 0.7, 1.3]},
}  # fmt: skip


def save(folder: Path, name: str, values: dict[str, Any]) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **values))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_it_gives_the_logits_of_the_plain_model(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name, MODELS[name])
    ids = tokens()
    expected = plain_logits(folder, ids, torch.float32)
    assert expected.std() > 0.1
    torch.testing.assert_close(streamed_logits(folder, ids, tmp_path / "scratch"), expected, rtol=1e-4, atol=1e-4)


def test_some_positions_of_a_model_that_computes_all(tmp_path: Path) -> None:
    streamed = StreamedModel(save(tmp_path / "model", "whisper", WHISPER))
    streamed.load_rest()
    hidden, keep = torch.randn(2, 5, 32), torch.tensor([1, 3])
    every = streamed.logits(hidden, torch.arange(5))
    assert torch.equal(streamed.logits(hidden, keep), every[:, keep])


PREFIX = "cannot be run a layer at a time: it"
SEVERED = {
    "xlm": (
        {"n_words": 96, "vocab_size": 96, "emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64},
        f"XLMWithLMHeadModel {PREFIX} changes the hidden states between its decoder layers 0 and 1",
    ),
    "xlnet": (
        {"vocab_size": 96, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64},
        f"XLNetLMHeadModel {PREFIX} hands its layers hidden states of the shape [2, 1, 32] for tokens of [1, 2]",
    ),
}


@pytest.mark.parametrize("name", SEVERED)
def test_models_that_cannot_be_run_a_layer_at_a_time(name: str, tmp_path: Path) -> None:
    values, message = SEVERED[name]
    streamed = StreamedModel(save(tmp_path / "model", name, values))
    streamed.load_rest()
    with pytest.raises(RecipeError) as refused:
        streamed.calls(torch.tensor([[3, 4]]))
    (found,) = refused.value.diagnostics
    assert (found.code, found.message) == ("R405", message)
    assert found.help == "choose a model whose decoder layers follow one another"
