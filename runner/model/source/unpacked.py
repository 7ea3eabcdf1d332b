"""Sources with weights in low precision: of each a dense checkpoint is made once, in the cache, keyed by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from runner.errors import Diagnostic, RecipeError
from runner.model.checkpoint import headers, unpacking
from runner.model.source import conversion

PROGRAM = "runner.model.layerwise.unpacked_checkpoint"


def digest(model: str, *, adapted: bool = False) -> str:
    """Return the digest of the dense checkpoint of a model with this digest, whether it has been made or not.

    `adapted` says that the model carries an adapter, which the checkpoint then has too.
    """
    added = " with its adapter" if adapted else ""
    return hashlib.sha256(f"unpacked {unpacking.VERSION} {model}{added}".encode()).hexdigest()


def place(unpacked: str) -> Path:
    """Return the folder of the dense checkpoint with this digest; it need not exist yet."""
    return conversion.place(f"unpacked-{unpacked}")


def needs_weights(folder: Path) -> bool:
    """Return whether the facts of a model with this config.json need more of its files than their headers."""
    unpacker = unpacking.find(headers.read_config(folder), unpacking.ONLY_READ)
    return unpacker is not None and unpacker.PEEKS


def checkpoint(folder: Path, unpacked: str, source: str, nbytes: int) -> Path:
    """Return the folder of the dense checkpoint, of `nbytes`, made now if it is not there.

    Raises RecipeError (R642) where the weights cannot be read.
    """
    if not place(unpacked).is_dir():
        shard = min(nbytes, 5 * 10**9)  # one more lies on the disk while parts are laid out in shards
        answer = conversion.make(PROGRAM, place(unpacked).name, {"folder": str(folder)}, nbytes + shard)
        if answer["problem"]:
            raise RecipeError([Diagnostic("R642", f"`{source}` {answer['problem']}", answer["help"] or None)])
    return place(unpacked)
