"""Packs documents into one stream of token ids, from which windows are cut. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.data.documents import LongText
from runner.data.long_text import PIECE
from runner.data.tokenizer import Tokenizer

Ids = NDArray[np.int64]

VERSION = 2  # raised when the same documents give other ids; part of the key of every step that reads data
_JOINT = "\n\n"


class Text(NamedTuple):
    """A document's text; `framed`: a chat template has written the special tokens into it already."""

    text: str | LongText
    framed: bool

    @property
    def blank(self) -> bool:
        return not self.framed and isinstance(self.text, str) and not self.text.strip()

    @property
    def size(self) -> int:
        """Number of characters; of a long text only that it is more than a piece."""
        return len(self.text) if isinstance(self.text, str) else PIECE + 1


def framed(texts: Iterable[Text], tokenizer: Tokenizer, limit: int | None) -> Iterator[Ids]:
    """Yield bos + ids + eos of each document, until there are `limit` ids; blank documents are skipped."""
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    eos = [] if tokenizer.eos is None else [tokenizer.eos]
    return _until(limit, _framed(texts, tokenizer, bos, eos))


def _framed(texts: Iterable[Text], tokenizer: Tokenizer, bos: list[int], eos: list[int]) -> Iterator[list[int]]:
    for batch in _batches(text for text in texts if not text.blank):
        first = batch[0]
        if first.size > PIECE:
            yield [] if first.framed else bos
            yield from tokenizer.encode_long([first.text] if isinstance(first.text, str) else first.text)
            yield [] if first.framed else eos
            continue
        encoded = tokenizer.encode([str(text.text) for text in batch], special=False)
        for ids, text in zip(encoded, batch, strict=True):
            yield ids if text.framed else [*bos, *ids, *eos]


def joined(texts: Iterable[Text], tokenizer: Tokenizer, limit: int | None) -> Iterator[Ids]:
    """Yield the documents joined by a blank line and tokenized as one, as papers count perplexity.

    Empty documents are included. The special tokens that the tokenizer adds surround the joined text.
    """
    return _until(limit, _joined(texts, tokenizer))


def _joined(texts: Iterable[Text], tokenizer: Tokenizer) -> Iterator[list[int]]:
    before, after = tokenizer.frame
    yield before
    yield from tokenizer.encode_long(_with_joints(texts))
    yield after


def _with_joints(texts: Iterable[Text]) -> Iterator[str]:
    for number, (text, _) in enumerate(texts):
        if number:
            yield _JOINT
        yield from [text] if isinstance(text, str) else text


def _until(limit: int | None, chunks: Iterable[list[int]]) -> Iterator[Ids]:
    total = 0
    for ids in chunks:
        yield np.array(ids, np.int64)
        total += len(ids)
        if limit is not None and total >= limit:
            return


def _batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Yield documents to encode at once: enough for every core, few enough to stop early; a long one alone."""
    batch: list[Text] = []
    held = 0
    for text in texts:
        if text.size > PIECE:
            if batch:
                yield batch
            yield [text]
            batch, held = [], 0
            continue
        batch.append(text)
        held += text.size
        if held >= PIECE:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
