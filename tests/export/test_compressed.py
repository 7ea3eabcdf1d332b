from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from runner.errors import StepFailed
from runner.export import compressed


def test_there_and_back(tmp_path: Path) -> None:
    content = b"".join(f"kernel {i}: the same text\n".encode() * 100 for i in range(3000))
    plain, packed = tmp_path / "model.engine", tmp_path / "model.engine.xz"
    plain.write_bytes(content)
    compressed.compress(plain, packed)
    assert packed.stat().st_size < len(content) / 50
    assert lzma.decompress(packed.read_bytes()) == content
    assert compressed.read(packed) == compressed.read(plain) == content
    first = packed.read_bytes()
    compressed.compress(plain, packed)
    assert packed.read_bytes() == first


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "model.engine.xz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(StepFailed) as caught:
        compressed.read(path)
    assert caught.value.message == f"`{path}` is damaged: Input format not supported by decoder"
    assert caught.value.help == "copy it again, or build it again"
