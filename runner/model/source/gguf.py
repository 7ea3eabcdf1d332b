"""GGUF files as sources: each becomes a checkpoint of transformers once, in the user's cache, keyed by its digest."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib import metadata
from pathlib import Path

from runner.errors import Diagnostic, MachineError, RecipeError
from runner.model.source import conversion

PROGRAM = "runner.model.layerwise.gguf_checkpoint"
_SOURCE = Path(__file__).resolve().parents[1] / "layerwise" / "gguf_checkpoint.py"
# What a byte of a file becomes at most: 2-bit blocks take 2.6 bits a value, bfloat16 takes 16.
_GROWTH = 7


def is_gguf(path: Path) -> bool:
    """Return whether a path names a GGUF file."""
    return path.suffix.lower() == ".gguf"


def checkpoint(file: Path, digest: str, source: str) -> Path:
    """Return the folder of the checkpoint that a GGUF file with this sha256 holds, made now if it is not there.

    Raises RecipeError (R641) where transformers cannot read the file as the model it holds.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MachineError(f"`{source}` is a GGUF file, and the package that reads it is not installed",
                           "`pip install 'runner[gguf]'`")  # fmt: skip
    key = "\n".join((
        digest, hashlib.sha256(_SOURCE.read_bytes()).hexdigest(),
        *(metadata.version(package) for package in ("transformers", "gguf", "torch")),
    ))  # fmt: skip
    name = f"gguf-{hashlib.sha256(key.encode()).hexdigest()}"
    if not conversion.place(name).is_dir():
        answer = conversion.make(PROGRAM, name, {"file": str(file)}, file.stat().st_size * _GROWTH)
        if answer["problem"]:
            raise RecipeError([Diagnostic("R641", f"`{source}` {answer['problem']}", answer["help"])])
    return conversion.place(name)
