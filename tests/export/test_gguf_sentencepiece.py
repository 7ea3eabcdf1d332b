"""SentencePiece tokenizers. llama.cpp 0.5.0 gave the tokens of 24 texts of such a one, with and without its space."""

from __future__ import annotations

from typing import Any

import pytest

from runner.export import gguf_sentencepiece

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def both(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


@pytest.mark.parametrize(("normalizer", "splitter", "adds"), [
    (both(PREPEND, REPLACE), None, True), (REPLACE, SPLIT, False), (both(REPLACE), None, False),
    (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, True),
    (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}, False),
    (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, None),
    (None, None, None), (both(PREPEND), None, None), (both({"type": "NFKC"}, REPLACE), None, None),
    (both(PREPEND, {**REPLACE, "content": "_"}), None, None), (REPLACE, {"type": "Digits"}, None),
], ids=str)  # fmt: skip
def test_the_space_before_a_text(
    normalizer: dict[str, Any] | None, splitter: dict[str, Any] | None, adds: bool | None
) -> None:
    assert gguf_sentencepiece.adds_space({"normalizer": normalizer, "pre_tokenizer": splitter}) is adds


def test_scores_follow_the_order_of_merges() -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "<0x0A>": 6}
    merges = ["a b", "b c", ["ab", "c"], ["a", "bc"]]
    found = gguf_sentencepiece.scores({"vocab": vocabulary, "merges": merges})
    assert found is not None
    assert (found["ab"], found["bc"], found["abc"]) == (0.0, -1.0, -2.0)
    assert found["<0x0A>"] == found["a"] == -3.0


@pytest.mark.parametrize("merges", [
    ["a b", "b c", "ab c"],  # "a bc" would be joined by llama.cpp
    ["a b", "ab c", "b c", "a bc"],  # those of "abc" are not together
], ids=["missing", "apart"])  # fmt: skip
def test_merges_that_llama_cpp_would_not_follow(merges: list[str]) -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    assert gguf_sentencepiece.scores({"vocab": vocabulary, "merges": merges}) is None
