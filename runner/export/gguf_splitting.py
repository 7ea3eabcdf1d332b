"""How a tokenizer splits a text before merging, and llama.cpp's name for it (llama-vocab.cpp). No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
_DIGIT = r"\p{N}"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDS
_MARKS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _ENDS
_SEED = _CONTRACTIONS + "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _ENDS
_TEKKEN = _CASED % ("", "") + r"|\p{N}" + _SYMBOLS
_GPT4O = _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?") + r"|\p{N}{1,3}" + _SYMBOLS
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _ENDS
)

# Expressions, each of which splits the parts that the one before leaves → names: (without, with `ignore_merges`).
NAMES: Mapping[tuple[str, ...], tuple[str | None, str | None]] = {
    (_GPT2,): ("gpt-2", None),
    (_DIGIT, _GPT2): ("smollm", None),
    (_WORDS % "{1,3}",): ("dbrx", "llama-bpe"),
    (_WORDS % "",): ("qwen2", None),
    (_MARKS,): ("qwen35", None),
    (_SEED,): ("seed-coder", None),
    (_TEKKEN,): (None, "tekken"),
    (_GPT4O,): ("gpt-4o", None),
    (r"\p{N}{1,3}", "[一-龥\u3040-ゟ\u30a0-ヿ]+", _DEEPSEEK): ("deepseek-v3", None),
    ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT): ("deepseek-coder", None),
}
KNOWN = sorted({name for pair in NAMES.values() for name in pair if name is not None})


def name(pre_tokenizer: Mapping[str, Any] | None, *, ignore_merges: bool) -> str | None:
    """Return llama.cpp's name of a pre-tokenizer of tokenizer.json; None for one that it is not known to have.

    With `ignore_merges` a part that is a token itself is taken without merging; llama.cpp ties that to the name.
    """
    try:
        found = NAMES.get(tuple(_expressions(pre_tokenizer)))
    except LookupError:
        return None
    return found[ignore_merges] if found is not None else None


def _expressions(part: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the expressions of a pre-tokenizer that ends with ByteLevel. LookupError for any other."""
    parts = part.get("pretokenizers", []) if part and part.get("type") == "Sequence" else [part or {}]
    if not parts or parts[-1].get("type") != "ByteLevel" or any(p.get("add_prefix_space") for p in parts):
        raise LookupError
    for step in parts[:-1]:
        yield _expression(step)
    if parts[-1].get("use_regex", True):
        yield _GPT2


def _expression(step: Mapping[str, Any]) -> str:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return _DIGIT
    pattern = step.get("pattern")
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
        raise LookupError
    if not isinstance(pattern, Mapping) or not isinstance(pattern.get("Regex"), str):
        raise LookupError
    return str(pattern["Regex"])
