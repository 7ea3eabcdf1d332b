"""Models that cannot be run a layer at a time are found without weights, before anything is computed."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from runner.errors import RecipeError
from runner.model.architecture import inspect
from runner.model.layerwise import stream_check
from runner.plan.resolve_inputs import described
from tests import model_types, tiny

PREFIX = "cannot be run a layer at a time: it"
REFUSED = {
    "xlm": ("R405", f"XLMWithLMHeadModel {PREFIX} changes the hidden states between its decoder layers 0 and 1"),
    "xlnet": (
        "R405",
        f"XLNetLMHeadModel {PREFIX} hands its layers hidden states of the shape [8, 1, 32] for tokens of [1, 8]",
    ),
    "gemma3n_text": (
        "R405",
        f"Gemma3nForCausalLM {PREFIX} hands its layers hidden states of the shape [2, 1, 8, 32] for tokens of [1, 8]",
    ),
    "zaya": (
        "R405",
        f"ZayaForCausalLM {PREFIX} hands its decoder layer 1 more of what earlier layers return than hidden states",
    ),
    "inkling2_text": (
        "R405",
        f"Inkling2ForCausalLM {PREFIX} computes its logits from more than what its last decoder layer gives",
    ),
    "hrm_text": ("R404", "HrmTextForCausalLM has no list of 32 decoder layers"),
    "longcat_flash": ("R404", "LongcatFlashForCausalLM has no list of 8 decoder layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_a_model_from_being_streamed(name: str) -> None:
    [found] = stream_check.check(model_types.config(name), own_code=False).problems
    assert (found.error, found.words) == REFUSED[name]


def test_a_configuration_without_layers() -> None:
    config: Any = AutoConfig.for_model("llama", **tiny.GROUPED | {"num_hidden_layers": 0})
    [found] = stream_check.check(config, own_code=False).problems
    words = "LlamaForCausalLM has no list of decoder layers: its configuration says that it has 0"
    assert (found.error, found.words) == ("R404", words)


def test_positions_that_are_no_numbers() -> None:
    rope = {"rope_type": "default", "rope_theta": -0.5}
    config: Any = AutoConfig.for_model("llama", **tiny.GROUPED | {"rope_parameters": rope})
    [found] = stream_check.check(config, own_code=False).problems
    words = "LlamaForCausalLM hands its decoder layers NaN as `position_embeddings`, whatever its weights are"
    assert (found.error, found.words) == ("R455", words)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "opt", "openai-gpt", "falcon_h1", "bert", "whisper", "gemma2", "git", "rwkv"]
)
def test_models_that_can(name: str) -> None:
    assert stream_check.check(model_types.config(name), own_code=False) == stream_check.Streamed()


def test_what_earlier_layers_return_is_handed_on_and_used_by_some_layers_alone() -> None:
    """An index of GLM is computed by the layers called "full" and used again by those called "shared"."""
    changes = {"indexer_types": ["full", "full", "shared", "full"]}
    words = "hands its decoder layer 1 more of what earlier layers return than hidden states"
    assert stream_check.check(model_types.config("glm_moe_dsa"), own_code=False).problems == ()
    [found] = stream_check.check(model_types.config("glm_moe_dsa", changes), own_code=False).problems
    assert (found.error, found.words) == ("R405", f"GlmMoeDsaForCausalLM {PREFIX} {words}")


def test_layers_that_hand_one_another_keys_and_values() -> None:
    assert stream_check.check(model_types.config("gemma4_text"), own_code=False) == stream_check.Streamed((), True)


def test_large_tables_take_no_memory() -> None:
    config: Any = AutoConfig.for_model("llama", **tiny.GROUPED | {"vocab_size": 2**18, "hidden_size": 2**12})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert stream_check.check(config, own_code=False).problems == ()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20  # KiB; the table has 4 GiB in float32


def test_the_plan_refuses(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(model_types.config("xlm")).save_pretrained(tmp_path)
    facts = inspect.facts(tmp_path, "m")
    with pytest.raises(RecipeError) as caught:
        described(facts, tmp_path)
    assert [(d.code, d.message, d.help) for d in caught.value.diagnostics] == [
        (*REFUSED["xlm"], "choose a model whose decoder layers follow one another")
    ]
