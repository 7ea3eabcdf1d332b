"""Which model types can be compressed, as data. The installed transformers is read as text, never imported."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.errors import Diagnostic, MachineError
from runner.model.architecture import remote_code

# Their decoder layers hold Conv1D modules, whose weight is [in_features, out_features].
CONV1D_TYPES = frozenset({"gpt2", "gpt-sw3", "openai-gpt"})

EMBEDDING_NAMES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
EMBEDDING_SIZE_KEYS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model")


def auto_class(model_type: str) -> str:
    """Return the name of the class of transformers that makes and loads models of a type, towers included."""
    if model_type in image_text_models():
        return "AutoModelForImageTextToText"
    if model_type in multimodal_models() and model_type not in causal_models():
        return "AutoModelForMultimodalLM"
    return "AutoModelForCausalLM"


def has_towers(config: Mapping[str, Any]) -> bool:
    """Return whether a model wraps its language model in others, for images or sound."""
    model_type = config.get("model_type")
    wraps = model_type in image_text_models() or model_type in multimodal_models()
    return isinstance(config.get("text_config"), Mapping) or (wraps and model_type not in causal_models())


def causal_models() -> Mapping[str, str]:
    """Model type → class of the causal language model, as the installed transformers maps them."""
    found = _mapping("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    if not found:
        raise MachineError(
            "the installed transformers has no MODEL_FOR_CAUSAL_LM_MAPPING_NAMES in models/auto/modeling_auto.py",
            "`runner doctor` shows the version of transformers; install one that this release of runner supports",
        )
    return found


def image_text_models() -> Mapping[str, str]:
    """Model type → class of the model that answers in text to images and text."""
    return _mapping("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")


def multimodal_models() -> Mapping[str, str]:
    """Model type → class of the model that answers in text to sound and the like, those for images not among them."""
    return _mapping("MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")


@lru_cache(maxsize=8)
def _mapping(name: str) -> Mapping[str, str]:
    """A mapping of transformers from model types to classes; empty where the installed one does not have it."""
    try:
        spec = importlib.util.find_spec("transformers")
    except ValueError:  # transformers is half imported
        spec = None
    if spec is None or spec.origin is None:
        raise MachineError("transformers is not installed", "`pip install transformers`")
    text = (Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py").read_text("utf-8")
    found = re.search(rf"^{name}\s*=\s*OrderedDict\((.*?)^\)", text, re.DOTALL | re.MULTILINE)
    return dict(re.findall(r'\("([^"]+)",\s*"(\w+)"\)', found.group(1))) if found else {}


def refuse_config(config: Mapping[str, Any], source: str) -> Diagnostic | None:
    """Why a model of this configuration cannot be compressed, or None."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return Diagnostic(
            "R440",
            f"config.json of {source} has no `model_type`, so its architecture is unknown",
            "name a folder that `save_pretrained` of transformers wrote",
        )
    malformed = _malformed(config, source)
    if malformed:
        return malformed
    inner = config.get("text_config")
    wrappers = {**multimodal_models(), **image_text_models()}
    if isinstance(inner, dict) and model_type not in wrappers:
        text_type = inner.get("model_type") or f"{model_type}_text"
        return Diagnostic(
            "R443",
            f"{source} is a `{model_type}` model, which wraps its language model in others (images, sound); the "
            "installed transformers has no class for both together of that type",
            f"save the language model on its own (model type `{text_type}`) with `save_pretrained` of transformers "
            "and name that folder",
        )
    if config.get("is_encoder_decoder") or (isinstance(inner, dict) and inner.get("is_encoder_decoder")):
        return Diagnostic(
            "R442",
            f"{source} is an encoder-decoder (`{model_type}`); only decoder-only language models can be compressed",
            "choose a decoder-only model, such as one of type `llama`, `qwen3` or `gemma2`",
        )
    known = {**wrappers, **causal_models()}
    if model_type not in known and not remote_code.may_run(config):
        near = difflib.get_close_matches(model_type, known, n=1, cutoff=0.7)
        hint = f"; did you mean `{near[0]}`?" if near and not remote_code.brings_code(config) else ""
        remedy = (
            remote_code.remedy(config)
            if remote_code.brings_code(config)
            else "upgrade transformers if the model is newer than it: `pip install --upgrade transformers`"
        )
        return Diagnostic(
            "R440",
            f"{source} has the model type `{model_type}`, which the installed transformers does not know as a causal "
            f"language model{hint}",
            remedy,
        )
    classes = config.get("architectures") or []
    expected = known.get(model_type, classes[0] if classes else "")
    usual = ("ForCausalLM", "LMHeadModel", *(("ForConditionalGeneration",) if model_type in wrappers else ()))
    if classes and not (classes[0].lower() == expected.lower() or classes[0].endswith(usual)):
        return Diagnostic(
            "R440",
            f"{source} is a `{classes[0]}`; only causal language models can be compressed "
            f"(`{expected}` for the model type `{model_type}`)",
            "choose a checkpoint of the language model itself",
        )
    return None


def _malformed(config: Mapping[str, Any], source: str) -> Diagnostic | None:
    """Keys that are read here, before transformers sees them, and hold something else than they can."""
    classes, quantization = config.get("architectures"), config.get("quantization_config")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        wrong = f"`architectures` = {json.dumps(classes)[:60]}; it must be a list of names of classes"
    elif quantization is not None and not (isinstance(quantization, dict) and quantization):
        wrong = f"`quantization_config` = {json.dumps(quantization)[:60]}; it must be an object that names a method"
    else:
        return None
    message = f"config.json of {source} has {wrong}"
    return Diagnostic("R453", message, "correct that value, or download config.json again")


def runs_own_code(config: Mapping[str, Any]) -> bool:
    """Return the value of transformers' `trust_remote_code` for a checkpoint with this config.json."""
    known = (causal_models(), image_text_models(), multimodal_models())
    return remote_code.may_run(config) and not any(config.get("model_type") in each for each in known)
