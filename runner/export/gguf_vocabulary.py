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

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama_token_type of llama.cpp

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The regular expression that splits a text before merging → llama.cpp's name for it (llama-vocab.cpp).
_SPLITS = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}


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
    pre = _splitting(document.get("pre_tokenizer"))
    if model.get("type") != "BPE" or model.get("byte_fallback") or pre is None or document.get("normalizer"):
        raise StepFailed(
            f"the tokenizer in `{folder}` is not byte-level BPE split as GPT-2, Llama 3 or Qwen 2 split it, the only "
            "tokenizers that are written into GGUF",
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


def _splitting(part: Mapping[str, Any] | None) -> str | None:
    """Return llama.cpp's name of a pre-tokenizer; None for one that is not supported."""
    parts = part.get("pretokenizers", []) if part and part.get("type") == "Sequence" else [part or {}]
    if any(p.get("add_prefix_space") for p in parts) or not parts or parts[-1].get("type") != "ByteLevel":
        return None
    if len(parts) == 1:
        return "gpt-2" if parts[0].get("use_regex", True) else None  # the expression of GPT-2 is ByteLevel's own
    split = parts[0]
    isolated = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
    if len(parts) != 2 or not isolated or parts[1].get("use_regex", True):
        return None
    return _SPLITS.get((split.get("pattern") or {}).get("Regex", ""))
