"""What is wrong with a checkpoint by transformers' description of it: refusals, tensors missing or of other shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runner.contracts.facts import TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import ModelDescription, Problem
from runner.errors import Diagnostic
from runner.model.checkpoint.quantization import cache_scheme

_SHOWN = 12  # complaints of one kind; a shard that went wrong would repeat itself thousands of times
_AGAIN = "the checkpoint is incomplete or was edited; download it again"


def complaints(
    found: ModelDescription, tensors: Mapping[str, TensorHeader], config: Mapping[str, Any], source: str
) -> list[Diagnostic]:
    """Return everything that keeps a checkpoint from being read as the model that its config.json describes."""
    if found.problems:
        return [_refused(problem, config, source) for problem in found.problems]
    stored = {each.name: each.stored or each.name for each in found.parameters}
    shapes = {each.name: each.shape for each in found.parameters}
    missing = [
        Diagnostic("R406", f"tensor `{stored.get(name, name)}` is missing from `{source}`", _AGAIN)
        for name in found.missing
    ]
    misshaped = [
        Diagnostic(
            "R407",
            f"`{stored[name]}` is {list(shape)} in {tensors[stored[name]].shard}, the model wants {list(shapes[name])}",
            "config.json belongs to another model; download both together",
        )
        for name, shape in (found.misshaped or {}).items()
    ]
    converted = [
        Diagnostic(
            "R408",
            f"`{found.converted[0]}` is stored in a form that transformers converts on loading, which cannot be "
            f"streamed{_others(len(found.converted))}",
            "load it with transformers and save it again",
        )
    ] if found.converted else []  # fmt: skip
    twice = [
        Diagnostic("R414", f"{' and '.join(f'`{each}`' for each in names)} both stand for `{name}` of the model", _TWO)
        for name, names in (found.duplicates or {}).items()
    ]
    strange = [
        Diagnostic("R415", f"nothing in the model of `{source}` has a use for its tensor `{name}`", _STRANGE)
        for name in found.unexpected
    ]
    scales = _cache_scales(found, tensors, config, source)
    return [*_few(missing), *_few(misshaped), *converted, *_few(twice), *_few(strange), *_few(scales)]


def _cache_scales(
    found: ModelDescription, tensors: Mapping[str, TensorHeader], config: Mapping[str, Any], source: str
) -> list[Diagnostic]:
    """Return complaints about the scales of keys and values in a checkpoint whose cache is rounded."""
    scheme = cache_scheme.parse(ModelConfig.of(config).quantization)
    if scheme is None:
        return []
    if found.caches is None:
        message = f"`{source}` rounds its cache of keys and values; which modules have one depends on values"
        return [Diagnostic("R651", message, "start from the model as it was before its cache was quantized")]
    wrong = []
    for each in found.caches:
        for key, heads in zip(cache_scheme.SCALES, (each.key_heads, each.value_heads), strict=True):
            name, shape = f"{each.stored}.{key}", scheme.scale_shape(heads)
            header = tensors.get(name)
            if heads and header is None:
                wrong.append(Diagnostic("R406", f"tensor `{name}` is missing from `{source}`", _AGAIN))
            elif heads and header is not None and header.shape != shape:
                message = f"`{name}` is {list(header.shape)} in {header.shard}, its scheme wants {list(shape)}"
                wrong.append(Diagnostic("R407", message, _AGAIN))
    return wrong


_STRANGE = "config.json belongs to another model, or load the model with transformers and save it again"
_TWO = "remove the one that is not meant, or load the model with transformers and save it again"


def _others(count: int) -> str:
    return "" if count == 1 else f", like {count - 1:,} more"


def _few(found: list[Diagnostic]) -> list[Diagnostic]:
    hidden = len(found) - _SHOWN
    if hidden <= 0:
        return found
    what = "tensors are missing" if found[0].code == "R406" else "tensors are like that"
    return [*found[:_SHOWN], Diagnostic(found[0].code, f"{hidden:,} more {what}")]


def _refused(problem: Problem, config: Mapping[str, Any], source: str) -> Diagnostic:
    """A refusal of transformers with the keys that it concerns and their values."""
    if problem.stage == "generation":
        return Diagnostic(
            "R454",
            f"transformers cannot read generation_config.json of `{source}`: {problem.words}",
            "correct it, or remove it: it only holds defaults for generating text",
        )
    if problem.stage == "tokenizer":
        return Diagnostic(
            "R448",
            f"transformers cannot load the tokenizer of `{source}`: {problem.words}",
            "download its files again: tokenizer.json, tokenizer_config.json and those beside them",
        )
    if problem.stage == "stream":
        order = "choose a model whose decoder layers follow one another"
        numbers = "correct config.json, or download it again; positions are computed from `rope_parameters`"
        return Diagnostic(problem.error, problem.words, numbers if problem.error == "R455" else order)
    given = [f"`{key}` = {_value(config[key])}" for key in problem.keys if key in config]
    does = {"config": "refuses", "model": "cannot build", "forward": "cannot run"}[problem.stage]
    model = "config.json of" if problem.stage == "config" else "the model of"
    blame = f", {' or '.join(given)}" if given else ""
    return Diagnostic(
        "R453",
        f"transformers {does} {model} `{source}`{blame}: {problem.words}",
        "correct that value, or download config.json again" if given else "download config.json again",
    )


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
