"""The number of tokens of a data entry, counted as the worker counts them and cached with the digests."""

from __future__ import annotations

from pathlib import Path

from runner.data.documents import documents_of
from runner.data.image_records import image_records
from runner.data.tokenizer import Tokenizer, is_fast
from runner.data.windows import tokens
from runner.plan.digests import load_cache, update_cache
from runner.plan.keys import data_inputs, sha256
from runner.plan.types import ResolvedData

_LARGEST = 32 * 2**20  # bytes of text that a plan tokenizes at most
_CHARACTERS = 8  # upper bound of the characters of a token, in any language

_counted: dict[str, int] = {}


def count_tokens(
    data: ResolvedData, tokenizer_folder: Path | None, model_digest: str, cache_file: Path | None
) -> int | None:
    """Return the tokens of a data entry, at most as many as its `samples` need; None where counting would be slow.

    A record with images counts as a full window. None stands for a Hub dataset, a tokenizer that needs transformers or
    is not on this machine (`tokenizer_folder` None), and a text that is too long: the worker checks those. Raises
    RecipeError for text that cannot be read.
    """
    spec = data.spec
    if spec.images is not None:
        return len(image_records(spec, data.files)) * spec.sequence_length
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
