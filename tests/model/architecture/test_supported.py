"""What is refused before anything is read, by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from runner.contracts.model_config import ModelConfig
from runner.model.architecture import supported
from tests.model.checkpoints import LLAMA

ENCODER_REMEDY = "choose a decoder-only model, such as one of type `llama`, `qwen3` or `gemma2`"
UPGRADE = "upgrade transformers if the model is newer than it: `pip install --upgrade transformers`"
UNKNOWN = "`m` has the model type `{}`, which the installed transformers does not know as a causal language model"


@pytest.mark.nightly
def test_the_models_of_transformers_are_known() -> None:
    """The list read as text is the one that transformers itself uses."""
    code = (
        "from runner.model.architecture.supported import causal_models; found = dict(causal_models()); import sys; "
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules; "
        "from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known; "
        "assert found == dict(known), found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "model_type",
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "gpt_neox"],
)
def test_supported(model_type: str) -> None:
    config = {"model_type": model_type, "architectures": [supported.causal_models()[model_type]]}
    assert supported.refuse_config(config, "`m`") is None


REFUSED: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    (
        {},
        (
            "R440",
            "config.json of `m` has no `model_type`, so its architecture is unknown",
            "name a folder that `save_pretrained` of transformers wrote",
        ),
    ),
    ({"model_type": "lama"}, ("R440", UNKNOWN.format("lama") + "; did you mean `llama`?", UPGRADE)),
    (
        {"model_type": "zzzz", "auto_map": {"AutoModel": "modeling_x.X"}},
        (
            "R440",
            UNKNOWN.format("zzzz"),
            (
                "the model brings its own code (modeling_x.py), which is not run: read it, then give "
                "`--trust-remote-code`; or use a checkpoint converted to an architecture of transformers"
            ),
        ),
    ),
    (
        {"model_type": "t5", "is_encoder_decoder": True},
        (
            "R442",
            "`m` is an encoder-decoder (`t5`); only decoder-only language models can be compressed",
            ENCODER_REMEDY,
        ),
    ),
    (
        {"model_type": "zzz_vl", "text_config": {"model_type": "opt"}},
        (
            "R443",
            (
                "`m` is a `zzz_vl` model, which wraps its language model in others (images, sound); the installed "
                "transformers has no class for both together of that type"
            ),
            (
                "save the language model on its own (model type `opt`) with `save_pretrained` of transformers "
                "and name that folder"
            ),
        ),
    ),
    (
        {"model_type": "florence2", "text_config": {"model_type": "bart", "is_encoder_decoder": True}},
        (
            "R442",
            "`m` is an encoder-decoder (`florence2`); only decoder-only language models can be compressed",
            ENCODER_REMEDY,
        ),
    ),
    (
        {"model_type": "gemma3", "architectures": ["Gemma3ForSequenceClassification"], "text_config": {}},
        (
            "R440",
            (
                "`m` is a `Gemma3ForSequenceClassification`; only causal language models can be compressed "
                "(`Gemma3ForConditionalGeneration` for the model type `gemma3`)"
            ),
            "choose a checkpoint of the language model itself",
        ),
    ),
    (
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        (
            "R440",
            (
                "`m` is a `LlamaForSequenceClassification`; only causal language models can be compressed "
                "(`LlamaForCausalLM` for the model type `llama`)"
            ),
            "choose a checkpoint of the language model itself",
        ),
    ),
]


@pytest.mark.parametrize(("config", "expected"), REFUSED)
def test_refused(config: dict[str, Any], expected: tuple[str, str, str]) -> None:
    found = supported.refuse_config(config, "`m`")
    assert found is not None
    assert (found.code, found.message, found.help) == expected


@pytest.mark.parametrize(("model_type", "name"), [
    ("llama", "AutoModelForCausalLM"), ("gemma3_text", "AutoModelForCausalLM"), ("", "AutoModelForCausalLM"),
    ("llama4", "AutoModelForImageTextToText"),
    ("qwen2_vl", "AutoModelForImageTextToText"), ("voxtral", "AutoModelForMultimodalLM"),
])  # fmt: skip
def test_the_class_that_loads_all_of_a_model(model_type: str, name: str) -> None:
    assert supported.auto_class(model_type) == name


def test_towers_are_known_without_a_nested_configuration_of_text() -> None:
    """Qwen2-VL's config.json has the keys of its language model at the top."""
    config = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {}}
    assert supported.refuse_config(config, "`m`") is None
    assert supported.has_towers(config)
    assert not supported.has_towers({"model_type": "llama"})


def test_dense_models_may_have_empty_keys_of_mixtures() -> None:
    config: dict[str, Any] = {
        "model_type": "gemma4_text",
        "num_experts": None,
        "moe_intermediate_size": None,
        "moe_layers": [],
    }
    assert supported.refuse_config(config, "`m`") is None


@pytest.mark.parametrize(("changes", "wrong"), [
    ({"architectures": [None]}, "`architectures` = [null]; it must be a list of names of classes"),
    ({"architectures": "Llama"}, '`architectures` = "Llama"; it must be a list of names of classes'),
    ({"quantization_config": [4]}, "`quantization_config` = [4]; it must be an object that names a method"),
    ({"quantization_config": {}}, "`quantization_config` = {}; it must be an object that names a method"),
])  # fmt: skip
def test_keys_of_the_wrong_type(changes: dict[str, Any], wrong: str) -> None:
    found = supported.refuse_config({"model_type": "llama", **changes}, "`m`")
    assert found is not None
    assert (found.code, found.message, found.help) == (
        "R453", f"config.json of `m` has {wrong}", "correct that value, or download config.json again"
    )  # fmt: skip


@pytest.mark.parametrize("allowed", ["0", "1"], ids=["own code barred", "own code allowed"])
@pytest.mark.parametrize(
    "key",
    ["model_type", "architectures", "text_config", "is_encoder_decoder", "quantization_config", "auto_map",
     "num_experts", "moe_intermediate_size", "hidden_size", "num_hidden_layers", "vocab_size",
     "max_position_embeddings"],
)  # fmt: skip
def test_values_of_a_wrong_type_are_refused_or_left_to_transformers(
    key: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_TRUST_REMOTE_CODE", allowed)
    values = [None, True, 3, -1, 1.5, "x", [], [3], [None], [["x"]], {}, {"a": 1}, {"model_type": 3}, {"AutoConfig": 3}]
    for value in values:
        for model_type in ("llama", "unknown"):
            config = {**LLAMA, "model_type": model_type, key: value}
            refusal = supported.refuse_config(config, "`m`")
            assert refusal is None or refusal.render()
            assert supported.runs_own_code(config) in (True, False)
            assert ModelConfig.of(config).raw is config
    refusal = supported.refuse_config({**LLAMA, "architectures": 3}, "`m`")
    assert refusal is not None
    assert refusal.message == "config.json of `m` has `architectures` = 3; it must be a list of names of classes"
