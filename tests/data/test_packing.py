"""Documents packed into one stream of token ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.data import packing
from runner.data.documents import LongText, documents
from runner.data.packing import Text
from runner.data.tokenizer import Tokenizer
from runner.model.source.locate import demo_path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(demo_path("models", "tiny-llama"))


def framed(texts: list[Text], tokenizer: Tokenizer, limit: int | None = None) -> list[int]:
    return [int(id) for ids in packing.framed(texts, tokenizer, limit) for id in ids]


def joined(texts: list[Text], tokenizer: Tokenizer) -> list[int]:
    return [int(id) for ids in packing.joined(texts, tokenizer, None) for id in ids]


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text], special=False)[0]


def test_a_document_without_text_is_none(tokenizer: Tokenizer) -> None:
    texts = [Text("", False), Text("import os", False), Text(" \n\t", False), Text("", True)]
    assert framed(texts, tokenizer) == [1, *encoded(tokenizer, "import os"), 2]


def test_joined_texts_keep_those_that_are_empty(tokenizer: Tokenizer) -> None:
    """As the papers join a data set, whose empty rows are part of its text."""
    texts = [Text("a", False), Text("", False), Text("b", False)]
    assert joined(texts, tokenizer) == tokenizer.encode(["a\n\n\n\nb"], special=True)[0]


@pytest.mark.nightly
@pytest.mark.parametrize("already_framed", [False, True])
def test_a_long_document_among_short_ones(tokenizer: Tokenizer, already_framed: bool, tmp_path: Path) -> None:
    """Whether it is in memory or read while it is packed."""
    content = "value = f(x)\n" * 30_000
    path = tmp_path / "a.txt"
    path.write_text(content)
    [document] = documents([path], "text")
    assert isinstance(document, LongText)
    long = encoded(tokenizer, content)
    whole = long if already_framed else [1, *long, 2]
    for text in (document, content):
        texts = [Text("one", False), Text(text, already_framed), Text("two", False)]
        expected = [1, *encoded(tokenizer, "one"), 2, *whole, 1, *encoded(tokenizer, "two"), 2]
        assert framed(texts, tokenizer) == expected
        limited = framed(texts, tokenizer, limit=5000)
        assert expected[:5000] == limited[:5000]
        assert len(limited) < len(expected)
        together = tokenizer.encode([f"one\n\n{content}"], special=True)[0]
        assert joined([Text("one", False), Text(text, False)], tokenizer) == together
