"""Copy a tokenizer and the other files that accompany the weights into the folder of an engine."""

from __future__ import annotations

from pathlib import Path

from runner.data import special_tokens
from runner.model.checkpoint.companions import copy_companions, write_json

# What transformers 5 calls a tokenizer that tokenizer.json alone describes, and its name in every version.
_RENAMED = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def copy(source: Path, out: Path) -> None:
    """Copy the companion files of the checkpoint in `source`; older readers of tokenizers know the class they name."""
    copy_companions(source, out)
    path = out / special_tokens.CONFIG
    found = special_tokens.read_object(path)
    name = found.get("tokenizer_class")
    if isinstance(name, str) and name in _RENAMED:
        write_json(path, found | {"tokenizer_class": _RENAMED[name]})
