"""What transformers refuses of config.json, generation_config.json and tokenizers, found by having it use them.

Whatever it raises is a Problem. The keys that a problem concerns are those that transformers names, or else those that
it works without: each is left out in turn, so that the configuration's default stands in its place.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from runner.contracts.model_description import Problem
from runner.model.layerwise.empty_model import build_empty

_NAMED = re.compile(r"^Validation error for field '(\w+)':\s*(.*)", re.DOTALL)
_UNNAMED = re.compile(r"^Class validation error for validator '\w+':\s*(.*)", re.DOTALL)
# What torch says of shapes that do not fit one another.
_SHAPES = re.compile(
    r"size of tensor a|shapes cannot be multiplied|is invalid for input of size|split_with_sizes|Sizes of tensors"
)
# And of numbers of experts and groups that do not, which no mask causes.
_COUNTS = re.compile(r"k not in range for dimension|selected index k out of range|only one dimension can be inferred")
# What decides which configuration it is stays, in search of a culprit.
_IDENTITY = ("model_type", "architectures", "auto_map")
_SECONDS = 10.0  # that the search for a culprit may take
_TOKENS = 8

# Of these transformers makes a tokenizer; a folder that has none of them has no tokenizer to be checked.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

Document = Mapping[str, Any]


def build(folder: Path, own_code: bool) -> tuple[Any, tuple[Problem, ...]]:
    """The empty model of a folder's config.json, or None and why there is none."""
    document = json.loads((folder / "config.json").read_text("utf-8"))
    try:
        config = _config(folder, own_code)
    except Exception as error:  # noqa: BLE001  whatever transformers raises for a value is its refusal of it
        return None, (_problem("config", error, document, own_code, lambda changed: _variant(changed)),)
    try:
        return _model(config, own_code), ()
    except Exception as error:  # noqa: BLE001  as above
        return None, (_problem("model", error, document, own_code, lambda changed: _model(_variant(changed), False)),)


def running(folder: Path, own_code: bool, model: Any) -> tuple[Problem, ...]:
    """Why a model cannot run, found on the meta device, which computes shapes alone.

    Not everything can be computed there; so a failure counts only if with the default of some key it works, or if it is
    about shapes, which are the same there.
    """
    try:
        meta_forward(model)
    except Undecided:
        return ()
    except Exception as error:  # noqa: BLE001  as above
        document = json.loads((folder / "config.json").read_text("utf-8"))
        found = _problem(
            "forward", error, document, own_code, lambda changed: meta_forward(_model(_variant(changed), False))
        )
        misfit = _SHAPES.search(str(error.__cause__ or error)) or _COUNTS.search(str(error))
        return (found,) if found.keys or misfit else ()
    return ()


def generation(folder: Path) -> tuple[Problem, ...]:
    """Why generation_config.json cannot be read, where there is one."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return ()
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception as error:  # noqa: BLE001  as above
        return (Problem("generation", type(error).__name__, _words(error)[1]),)
    return ()


def tokenizer(folder: Path, own_code: bool) -> tuple[Problem, ...]:
    """Why the tokenizer cannot be loaded or used, where the folder has one that needs no code of its own."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return ()
    config = folder / "tokenizer_config.json"
    declared = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    if declared.get("auto_map") and not own_code:
        return ()
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=own_code)
        loaded.decode(loaded("a b")["input_ids"])
    except Exception as error:  # noqa: BLE001  as above
        return (Problem("tokenizer", type(error).__name__, _words(error)[1]),)
    return ()


def _config(folder: Path, own_code: bool) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # packed weights are read as dense ones
    return config


def _variant(document: Document) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(document), "utf-8")
        return _config(Path(folder), False)


def _model(config: Any, own_code: bool) -> Any:
    return build_empty(config, trust_remote_code=own_code).eval().requires_grad_(False)


class Undecided(Exception):
    """A forward needs values, and on the meta device there are none."""


def meta_forward(model: Any, cached: bool = True) -> None:
    """Compute the shapes of a forward on a few tokens, without and, if `cached`, with a cache.

    It raises what the model raises.

    Models look at the values of a mask in order to do without it, unless it is ready to be used, [1, 1, tokens, tokens]
    floats; old ones take none like that.
    """
    with _batched_experts(model):
        _forward(model, cached)


@contextmanager
def _batched_experts(model: Any) -> Iterator[None]:
    """Have experts multiply in batches: the grouped products of the meta device take bfloat16 alone."""
    if not hasattr(model, "get_experts_implementation"):  # not of every class of a repository's own code
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _forward(model: Any, cached: bool) -> None:
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    given = {"attention_mask": torch.zeros(1, 1, _TOKENS, _TOKENS, dtype=model.dtype, device="meta")}
    try:
        with torch.no_grad():
            model(input_ids=ids, **given, use_cache=False).logits  # noqa: B018  a tuple has none
    except Exception as first:  # noqa: BLE001  as above
        given = {}
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False).logits  # noqa: B018
        except Exception as second:
            if "meta" in str(first):
                raise Undecided from first
            raise first from second
    if not cached:
        return
    try:
        with torch.no_grad():
            model(input_ids=ids, **given, use_cache=True)
    except Exception as error:
        if "meta" in str(error):
            raise Undecided from error
        raise


def _problem(
    stage: str, error: Exception, document: Document, own_code: bool, work: Callable[[Document], Any]
) -> Problem:
    key, words = _words(error)
    keys = (key,) if key in document else () if own_code else _culprits(document, work)
    return Problem(stage, type(error).__name__, words, keys)


def _words(error: Exception) -> tuple[str, str]:
    """The key that transformers names ("" where it names none), and what it says."""
    text = str(error).strip()
    if found := _NAMED.match(text):
        return found.group(1), found.group(2).strip()
    if found := _UNNAMED.match(text):
        return "", found.group(1).strip()
    return "", f"{type(error).__name__}: {text}" if text else type(error).__name__


def _culprits(document: Document, work: Callable[[Document], Any]) -> tuple[str, ...]:
    """The keys without which it works."""
    found = []
    deadline = time.monotonic() + _SECONDS
    for key in document:
        if key in _IDENTITY or time.monotonic() > deadline:
            continue
        try:
            work({name: value for name, value in document.items() if name != key})
        except Exception:  # noqa: BLE001  it is not that key, or not that alone
            continue
        found.append(key)
    return tuple(found)
