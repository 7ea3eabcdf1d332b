"""Cuts text into windows of token ids, for the planner (which counts them) and the worker. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from runner.data import packing
from runner.data.chat_template import Conversation
from runner.data.documents import Document, documents_of
from runner.data.packing import Ids, Text
from runner.data.tokenizer import Tokenizer
from runner.errors import Diagnostic, RecipeError
from runner.recipe.types import DataSpec


def windows(spec: DataSpec, files: Sequence[Path], tokenizer_folder: Path) -> Ids:
    """Return token ids [n, sequence_length] of a located data entry, n = samples where the text is long enough.

    packing "documents": bos + tokens + eos of each document, one stream (bos and eos where the model has them);
    "joined": the documents joined by a blank line and tokenized once, with the tokenizer's own special tokens. The
    stream is cut from its start, the tail dropped. Chat messages are rendered by the tokenizer's chat template, without
    further special tokens. Raises RecipeError where there is not even one window.
    """
    length = spec.sequence_length
    ids = tokens(spec, documents_of(spec, files), Tokenizer(tokenizer_folder))
    count = len(ids) // length
    if count == 0:
        raise RecipeError([too_short(spec, len(ids))])
    return ids[: count * length].reshape(count, length)


def tokens(spec: DataSpec, documents: Iterable[Document], tokenizer: Tokenizer) -> Ids:
    """Return the stream of token ids [tokens] from which windows are cut, at most `samples` windows of it."""
    limit = None if spec.samples is None else spec.samples * spec.sequence_length
    pack = packing.joined if spec.packing == "joined" else packing.framed
    chunks = pack(_texts(spec, documents, tokenizer), tokenizer, limit)
    ids = np.concatenate([np.zeros(0, np.int64), *chunks])[:limit]
    highest = int(ids.max()) if len(ids) else 0
    if tokenizer.vocabulary is not None and highest >= tokenizer.vocabulary:
        message = (
            f"the tokenizer gives the token {highest}; config.json has `vocab_size` = {tokenizer.vocabulary}, "
            "so the two do not belong together"
        )
        raise RecipeError([Diagnostic("R448", message, "download model and tokenizer together")])
    return ids


def too_short(spec: DataSpec, found: int) -> Diagnostic:
    """Return the complaint about a text of `found` tokens."""
    samples, length = spec.samples or 1, spec.sequence_length
    have = found // length
    if spec.images is not None:
        message = f"data `{spec.name}` asks for {samples:,} records; the files hold {have:,}"
        return Diagnostic("R464", message, f"lower `samples` to {have}")
    complete = f"{have} window{'' if have == 1 else 's'}"
    remedy = f"lower `samples` to {have}" if have else f"lower `sequence_length` to {found}" if found > 1 else ""
    return Diagnostic(
        "R464",
        f"data `{spec.name}` asks for {samples} window{'' if samples == 1 else 's'} of {length} tokens = "
        f"{samples * length:,}; the text has {found:,} ({complete})",
        f"{remedy}, or name a longer text" if remedy else "name a longer text",
    )


def _texts(spec: DataSpec, documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Text]:
    for document in documents:
        if not isinstance(document, Conversation):
            yield Text(document, False)
            continue
        if spec.packing == "joined":
            message = f"data `{spec.name}` holds chat messages, which `packing: joined` would run together"
            raise RecipeError([Diagnostic("R468", message, "leave `packing` out")])
        yield Text(tokenizer.template.render(document), True)
