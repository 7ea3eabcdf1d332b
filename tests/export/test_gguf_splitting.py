"""Names of pre-tokenizers. benchmarks/readers/llama_cpp.py compares the tokens of llama.cpp for each of them."""

from __future__ import annotations

from typing import Any

import pytest

from runner.export import gguf_known, gguf_splitting
from runner.export.gguf_splitting import NAMES

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def test_those_of_known_models() -> None:
    digits = {"type": "Digits", "individual_digits": True}
    last = {**BYTES, "use_regex": False}
    assert gguf_splitting.name({**BYTES, "use_regex": True}, ignore_merges=False) == "gpt-2"
    assert gguf_splitting.name(sequence(digits, {**BYTES, "use_regex": True}), ignore_merges=False) == "smollm"
    assert gguf_splitting.name(sequence(split(LLAMA3), last), ignore_merges=True) == "llama-bpe"
    assert gguf_splitting.name(sequence(split(LLAMA3), last), ignore_merges=False) == "dbrx"
    assert gguf_splitting.name(sequence(split(LLAMA3.replace("{1,3}", "")), last), ignore_merges=False) == "qwen2"


@pytest.mark.parametrize("expressions", list(NAMES), ids=lambda value: "".join(str(n) for n in NAMES[value]))
def test_each(expressions: tuple[str, ...]) -> None:
    own = sequence(*(split(one) for one in expressions), {**BYTES, "use_regex": False})
    assert tuple(gguf_splitting.name(own, ignore_merges=merges) for merges in (False, True)) == NAMES[expressions]


@pytest.mark.parametrize("part", [
    None, {"type": "Metaspace"}, sequence(), {**BYTES, "add_prefix_space": True}, {**BYTES, "use_regex": False},
    sequence(split(r"\w+"), BYTES), sequence({**split(LLAMA3), "invert": True}, {**BYTES, "use_regex": False}),
    sequence({"type": "Digits", "individual_digits": False}, BYTES),
    sequence({**split(LLAMA3), "pattern": {"String": " "}}, {**BYTES, "use_regex": False}),
], ids=str)  # fmt: skip
def test_others(part: dict[str, Any] | None) -> None:
    assert gguf_splitting.name(part, ignore_merges=False) is None


def test_tokenizers_that_llama_cpp_knows_by_their_tokens() -> None:
    """The digest of SmolLM2's ids, which were taken from its tokenizer: its name in llama.cpp is smollm."""
    assert gguf_known.NAMES["855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249"] == "smollm"
    assert gguf_known.name([1, 2, 3]) is None
    assert len(gguf_known.NAMES) == 93
