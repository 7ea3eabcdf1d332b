"""Convert a tokenizer (tokenizer.json) for GGUF: byte-level BPE is llama.cpp's "gpt2", SentencePiece its "llama"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.data import special_tokens
from runner.data.tokenizer import Tokenizer
from runner.errors import StepFailed
from runner.export import gguf_known, gguf_sentencepiece, gguf_splitting

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama_token_type of llama.cpp
_OTHER = "convert the checkpoint with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` by id, with their `types`; `merges` in order; `pre` names the splitting; special tokens by id.

    Of SentencePiece, `scores` by id replace merges, and `adds_space` is whether a text gets a space before it.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    bos: int | None
    eos: int | None
    pad: int | None
    unknown: int | None
    adds_bos: bool
    adds_eos: bool
    template: str | None
    scores: list[float] | None = None
    adds_space: bool = False


def read(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint whose embedding has `size` rows. StepFailed if llama.cpp has none like it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise StepFailed(f"`{folder}` has no tokenizer.json, which GGUF is made of", "add the tokenizer of the model")
    document = json.loads(path.read_text(encoding="utf-8"))
    model = document.get("model") or {}
    if model.get("type") != "BPE":
        kind = model.get("type")
        raise StepFailed(f"the tokenizer in `{folder}` is of the kind {kind}, which is not written into GGUF", _OTHER)
    tokenizer = Tokenizer(folder)
    if model.get("byte_fallback"):
        scored, space = gguf_sentencepiece.scores(model), gguf_sentencepiece.adds_space(document)
        if scored is None or space is None:
            what = "joins tokens in another order" if scored is None else "treats spaces in another way"
            raise StepFailed(f"the tokenizer in `{folder}` {what} than llama.cpp's of SentencePiece", _OTHER)
        found = _read(folder, size, document, "default", tokenizer)
        return replace(
            found, merges=[], scores=[scored.get(token, -1000.0) for token in found.tokens], adds_space=space,
            types=[_kind(token, type, model) for token, type in zip(found.tokens, found.types, strict=True)],
        )  # fmt: skip
    pre = gguf_known.name(tokenizer.encode([gguf_known.TEXT], special=True)[0])
    if pre is None and not _normalizes(document):
        pre = gguf_splitting.name(document.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges")))
    if pre is None:
        raise StepFailed(
            f"the tokenizer in `{folder}` is none that llama.cpp names by its tokens, and splits texts in none of the "
            f"ways that are known by their expressions: {', '.join(gguf_splitting.KNOWN)}", _OTHER
        )  # fmt: skip
    return _read(folder, size, document, pre, tokenizer)


def _kind(token: str, type: int, model: Mapping[str, Any]) -> int:
    """Return the type of a token of SentencePiece."""
    if gguf_sentencepiece.is_byte(token):
        return gguf_sentencepiece.BYTE
    return gguf_sentencepiece.UNKNOWN if token == model.get("unk_token") else type


def _read(folder: Path, size: int, document: Mapping[str, Any], pre: str, tokenizer: Tokenizer) -> Vocabulary:
    model = document["model"]
    added = {int(token["id"]): token for token in document.get("added_tokens") or []}
    known = {int(id): token for token, id in model["vocab"].items()}
    highest = max([*known, *added], default=-1)
    if highest >= size:
        raise StepFailed(
            f"the tokenizer in `{folder}` has the token {highest}; the embedding has {size} rows",
            "use the tokenizer that belongs to the model",
        )
    tokens, types = [], []
    for id in range(size):
        if id in added:
            tokens.append(str(added[id]["content"]))
            types.append(CONTROL if added[id].get("special") else USER_DEFINED)
        else:
            tokens.append(known.get(id, f"[PAD{id}]"))
            types.append(NORMAL if id in known else UNUSED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    declared = special_tokens.declared(folder)
    ids = {text: id for id, text in enumerate(tokens)}
    given = tokenizer.encode(["a"], special=True)[0]
    return Vocabulary(
        tokens, types, merges, pre, tokenizer.bos, tokenizer.eos,
        ids.get(special_tokens.content(declared.get("pad_token")) or ""),
        ids.get(special_tokens.content(declared.get("unk_token")) or ""),
        adds_bos=tokenizer.bos is not None and given[:1] == [tokenizer.bos],
        adds_eos=tokenizer.eos is not None and given[-1:] == [tokenizer.eos],
        template=special_tokens.chat_template(folder),
    )  # fmt: skip


def _normalizes(document: Mapping[str, Any]) -> bool:
    """Return whether texts are changed before they are split, but for NFC, which llama.cpp leaves to its callers."""
    normalizer = document.get("normalizer") or {}
    parts = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    return any(part.get("type", "NFC") != "NFC" for part in parts)
