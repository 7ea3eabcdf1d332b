from __future__ import annotations

import json
from pathlib import Path

from runner.export import companions
from tests.export.exported import MODEL


def test_older_readers_know_the_class_of_the_tokenizer(tmp_path: Path) -> None:
    companions.copy(MODEL, tmp_path)
    before = json.loads((MODEL / "tokenizer_config.json").read_text())
    after = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert before["tokenizer_class"] == "TokenizersBackend"
    assert after == before | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert (tmp_path / "tokenizer.json").read_bytes() == (MODEL / "tokenizer.json").read_bytes()


def test_other_classes_stay(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    text = '{"tokenizer_class":   "GPT2Tokenizer"}'
    (source / "tokenizer_config.json").write_text(text)
    companions.copy(source, out)
    assert (out / "tokenizer_config.json").read_text() == text
