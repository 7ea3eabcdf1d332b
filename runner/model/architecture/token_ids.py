"""The special tokens that config.json and generation_config.json name, against the vocabulary that the weights have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.model.architecture import supported

_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
)


def complaints(facts: CheckpointFacts, folder: Path) -> list[Diagnostic]:
    """Ids of special tokens that are none, or that lie beyond the embedding's rows."""
    rows = vocabulary(facts)
    found = list(_wrong("config.json", facts.config.raw, rows, facts.source))
    path = folder / "generation_config.json"
    if path.is_file():
        found += _wrong(path.name, json.loads(path.read_text("utf-8")), rows, facts.source)
    return found


def vocabulary(facts: CheckpointFacts) -> int:
    """Rows of the token embedding; `vocab_size` of config.json where it is not found; 0 where neither is there."""
    tables = (t.shape for name, t in facts.tensors.items() if name.endswith(supported.EMBEDDING_NAMES))
    return next((shape[0] for shape in tables if len(shape) == 2), facts.config.vocabulary_size)


def _wrong(file: str, values: Mapping[str, Any], rows: int, source: str) -> Iterator[Diagnostic]:
    for key in _KEYS:
        given = values.get(key)
        ids = given if isinstance(given, list) else [] if given is None else [given]
        for index, id in enumerate(ids):
            place = f"`{key}`" + (f"[{index}]" if isinstance(given, list) else "")
            if not isinstance(id, int) or isinstance(id, bool):
                message = f"{place} in {file} of `{source}` must be the number of a token; it is {json.dumps(id)}"
                yield Diagnostic("R445", message, "give the number that the tokenizer has for it, or null")
            elif rows and (id >= rows or id < -1):
                message = (
                    f"{place} in {file} of `{source}` is {id}; the vocabulary has {rows:,} tokens, 0 to {rows - 1:,}"
                )
                help = "give the number that the tokenizer has for it, or null; a token that was added needs a row: "
                yield Diagnostic("R445", message, f"{help}`model.resize_token_embeddings(...)` before saving")
