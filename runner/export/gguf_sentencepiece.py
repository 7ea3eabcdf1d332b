"""Tokenizers of SentencePiece as GGUF has them (the tokenizer model "llama"): a score for each token. No torch.

transformers stores such a tokenizer as BPE over characters, with a token for each byte that no other has. llama.cpp
joins, of all neighbours that make a token, those with the highest score first (llm_tokenizer_spm_session in
llama-vocab.cpp). Both do the same if every pair of tokens that makes a token is a merge, and merges are in an order of
the tokens that they make; then minus the place in that order is the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN, BYTE = 2, 6  # llama_token_type of llama.cpp, besides those of gguf_vocabulary
_SPACE = "▁"


def adds_space(document: Mapping[str, Any]) -> bool | None:
    """Return whether a tokenizer.json puts a space before a text; None for one that treats spaces in another way."""
    normalizer, splitter = _parts(document.get("normalizer")), _parts(document.get("pre_tokenizer"))
    if [each.get("type") for each in splitter] == ["Metaspace"] and not normalizer:
        own = splitter[0]
        prepends = own.get("prepend_scheme", "always" if own.get("add_prefix_space", True) else "never")
        return prepends != "never" if own.get("replacement") == _SPACE and not own.get("split") else None
    if any(each.get("type") != "Split" or each.get("pattern") != {"String": " "} for each in splitter):
        return None  # splitting at spaces, which are replaced before, changes nothing
    kinds = [each.get("type") for each in normalizer]
    if kinds not in (["Prepend", "Replace"], ["Replace"]):
        return None
    replaces = normalizer[-1].get("pattern") == {"String": " "} and normalizer[-1].get("content") == _SPACE
    prepends = kinds[0] == "Prepend" and normalizer[0].get("prepend") == _SPACE
    return prepends if replaces and (prepends or len(kinds) == 1) else None


def scores(model: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the score of each token of a BPE model that joins as llama.cpp does; None for one that does not."""
    vocabulary = model["vocab"]
    order: dict[str, int] = {}
    pairs: set[tuple[str, str]] = set()
    last = ""
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, Sequence) and not isinstance(merge, str) else merge.split(" ")
        made = left + right
        if made != last and made in order:
            return None  # merges of one token are not together
        order.setdefault(made, len(order))
        pairs.add((left, right))
        last = made
    for token in vocabulary:
        if len(token) > 1 and not (token.startswith("<0x") and token.endswith(">")) and token in order:
            splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            if any(a in vocabulary and b in vocabulary and (a, b) not in pairs for a, b in splits):
                return None
    return {token: -float(order.get(token, len(order))) for token in vocabulary}


def is_byte(token: str) -> bool:
    """Return whether a token stands for a byte."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _parts(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not part:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return list(inner) if part.get("type") == "Sequence" and inner else [part]
