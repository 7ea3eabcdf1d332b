"""Long texts, piece by piece: the tokens of the whole, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from runner.data import long_text
from runner.data.documents import documents
from runner.model.source.locate import locate_data
from runner.recipe.types import DataSpec

DEMO = Path(__file__).parents[2] / "runner" / "demo"
TOKENIZER = DEMO / "models" / "tiny-llama" / "tokenizer.json"


@pytest.fixture(scope="module")
def text() -> str:
    files = locate_data(DataSpec("text", "demo:stdlib", "calibration", 512)).files
    found = "\n\n".join(str(document) for document in documents(files, "text"))
    return found[:100_000] + "Ünïcödé \U0001f600€ — " * 500 + "ab" * 2_500 + " " * 5_000 + found[100_000:200_000]


def byte_level() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


def without_words() -> Tokenizer:
    """The same merges over whole texts: nothing splits them before, a space begins them, runs are composed (NFC)."""
    made = Tokenizer.from_str(json.dumps({**json.loads(TOKENIZER.read_text("utf-8")), "post_processor": None}))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    made.normalizer = normalizers.NFC()
    return made


def characters() -> Tokenizer:
    """SentencePiece's way: every text begins with a mark, and a run of characters that are unknown is one token."""
    scores = [("<unk>", 0.0), ("▁", -2.0), *((chr(code), -3.0) for code in range(33, 127)), ("▁self", -4.0)]
    made = Tokenizer(models.Unigram(scores, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    made.decoder = decoders.Metaspace()
    return made


@pytest.mark.parametrize("tokenizer", [byte_level(), without_words(), characters()], ids=["words", "merges", "unigram"])
@pytest.mark.parametrize("piece", [2_000, 7_001, 50_000])
def test_the_tokens_are_those_of_the_whole(tokenizer: Tokenizer, piece: int, text: str) -> None:
    def encode(part: str) -> tuple[list[int], long_text.Offsets]:
        found = tokenizer.encode(part, add_special_tokens=False)
        return found.ids, found.offsets

    whole = tokenizer.encode(text, add_special_tokens=False).ids
    parts = (text[at : at + 999] for at in range(0, len(text), 999))
    found = list(long_text.tokens_of(parts, encode, piece, overlap=256))
    assert len(found) > 3
    assert [id for ids in found for id in ids] == whole


def test_pieces_are_the_text() -> None:
    parts = ["", "abcdefghij", "k", "lm", ""]
    assert list(long_text.pieces(parts, 4)) == ["abcd", "efgh", "ijkl", "m"]
    assert list(long_text.pieces([], 4)) == []
    assert list(long_text.pieces(["abcd"], 4)) == ["abcd"]


def test_no_more_is_read_than_asked_for() -> None:
    """Two pieces for the first tokens."""
    read = 0

    def parts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "some text " * 10

    tokenizer = byte_level()

    def encode(part: str) -> tuple[list[int], long_text.Offsets]:
        found = tokenizer.encode(part, add_special_tokens=False)
        return found.ids, found.offsets

    assert len(next(long_text.tokens_of(parts(), encode, 1_000, overlap=100))) > 100
    assert read <= 21


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux")
def test_memory_does_not_grow_with_a_document(tmp_path: Path) -> None:
    """All of 5 MB tokenized: at once it takes 0.9 GB."""
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write('{"text": "')
        for number in range(170_000):
            file.write(f"the value {number} of it is used, ")
        file.write('"}\n')
    code = (
        "import sys; from pathlib import Path\n"
        "from runner.data import windows; from runner.recipe.types import DataSpec\n"
        "ids = windows.windows(DataSpec('a', 'a.jsonl', None, 512), [Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(ids.size, status.split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, str(path), str(TOKENIZER.parent)]
    tokens, kilobytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(tokens) > 1_300_000
    assert int(kilobytes) < 300_000
