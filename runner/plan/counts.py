"""How many tokens a data entry gives, counted by the worker's own rule and remembered beside the digests."""

from __future__ import annotations

from pathlib import Path

from runner.data.documents import documents_of
from runner.data.tokenizer import Tokenizer, is_fast
from runner.data.windows import tokens
from runner.plan.digests import load_cache, update_cache
from runner.plan.keys import data_inputs, sha256
from runner.plan.types import ResolvedData

_LARGEST = 32 * 2**20  # bytes of text that are tokenized for a plan
_CHARACTERS = 8  # more than a token has in text of any language

_counted: dict[str, int] = {}


def count_tokens(
    data: ResolvedData, tokenizer_folder: Path | None, model_digest: str, cache_file: Path | None
) -> int | None:
    """Tokens of a data entry, at most as many as its `samples` ask for; None where that cannot be known quickly.

    Not known are a Hub dataset, a tokenizer that needs transformers or is not here (`tokenizer_folder` None), and a
    text that is too long: those the worker checks. RecipeError for text that cannot be read.
    """
    spec = data.spec
    read = data.bytes if spec.samples is None else min(data.bytes, _CHARACTERS * spec.samples * spec.sequence_length)
    if not data.files or read > _LARGEST:
        return None
    name = "tokens:" + sha256({"model": model_digest, **data_inputs(data)})
    if name in _counted:
        return _counted[name]
    count = load_cache(cache_file).get(name)
    if not isinstance(count, int):
        if tokenizer_folder is None or not is_fast(tokenizer_folder):
            return None
        count = len(tokens(spec, documents_of(spec, data.files), Tokenizer(tokenizer_folder)))
        update_cache(cache_file, {name: count})
    _counted[name] = count
    return count
