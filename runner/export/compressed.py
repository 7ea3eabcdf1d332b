"""Engines stored compressed. Standard library only.

The code of a TensorRT-RTX engine is the text of its kernels, about 80 kB each, which differ little: xz stores them
together. Its weights hardly shrink. (measured: 7.3 MB of code for six layers and two profiles in 0.4 MB)
"""

from __future__ import annotations

import lzma
from pathlib import Path

from runner.errors import StepFailed
from runner.model.checkpoint.safetensors_writer import write_all, written

SUFFIX = ".xz"
BYTES_PER_SECOND = 6e6  # of compression (measured); decompression has ten times as many
_PRESET = 1  # a dictionary of 1 MB, which holds a dozen kernels
_CHUNK = 1 << 20


def compress(source: Path, target: Path) -> None:
    """Write the file `source` compressed to `target`, atomically; equal bytes give equal bytes."""
    compressor = lzma.LZMACompressor(preset=_PRESET)
    with source.open("rb") as file, written(target) as out:
        while chunk := file.read(_CHUNK):
            write_all(out, memoryview(compressor.compress(chunk)))
        write_all(out, memoryview(compressor.flush()))


def read(path: Path) -> bytes:
    """Return the content of an engine's file, decompressed if its name ends in SUFFIX. StepFailed for a damaged one."""
    content = path.read_bytes()
    if path.suffix != SUFFIX:
        return content
    try:
        return lzma.decompress(content)
    except lzma.LZMAError as error:
        raise StepFailed(f"`{path}` is damaged: {error}", "copy it again, or build it again") from None
