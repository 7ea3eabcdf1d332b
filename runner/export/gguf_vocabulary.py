"""Convert a byte-level BPE tokenizer (tokenizer.json) for GGUF: the tokenizer model "gpt2" of llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.data import special_tokens
from runner.data.tokenizer import Tokenizer
from runner.errors import StepFailed
from runner.export import gguf_splitting

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama_token_type of llama.cpp


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` by id, with their `types`; `merges` in order; `pre` names the splitting; special tokens by id."""

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


def read(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint whose embedding has `size` rows. StepFailed if it is not byte-level BPE."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise StepFailed(f"`{folder}` has no tokenizer.json, which GGUF is made of", "add the tokenizer of the model")
    document = json.loads(path.read_text(encoding="utf-8"))
    model = document.get("model") or {}
    pre = gguf_splitting.name(document.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges")))
    if model.get("type") != "BPE" or model.get("byte_fallback") or pre is None or _normalizes(document):
        raise StepFailed(
            f"the tokenizer in `{folder}` is not byte-level BPE that splits texts in one of the ways that are written "
            f"into GGUF: {', '.join(gguf_splitting.KNOWN)}",
            "convert the checkpoint with llama.cpp's convert_hf_to_gguf.py",
        )
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
    tokenizer = Tokenizer(folder)
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
