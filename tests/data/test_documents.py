"""Documents out of files, and what is said about files that hold none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.data.documents import LongText, documents
from runner.errors import MachineError, RecipeError

UTF8 = "save it with UTF-8 encoding"
OBJECTS = "each line holds one JSON object"
ARRAY = "the file is one JSON array: write each of its objects on a line of its own, without commas between"
FIELD = "set `field` of the data entry to the field that holds the text"


def refused(path: Path, field: str = "text") -> tuple[str, str, str | None]:
    with pytest.raises(RecipeError) as caught:
        list(documents([path], field))
    [found] = caught.value.diagnostics
    return found.code, found.message, found.help


def test_files_in_order(tmp_path: Path) -> None:
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": "one", "id": 1}\n\n{"text": "zwei ü"}\n', encoding="utf-8")
    text = tmp_path / "a.txt"
    text.write_text("three\nfour\n")
    assert list(documents([lines, text], "text")) == ["one", "zwei ü", "three\nfour\n"]


def test_documents_are_streamed(tmp_path: Path) -> None:
    """A broken line is not reached before it is asked for."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\nbroken')
    assert next(documents([path], "text")) == "one"


@pytest.mark.parametrize(
    ("content", "code", "message", "help"),
    [
        (
            b'{"text": "a"}\n{"body": "b", "id": 2}\n',
            "R462",
            "line 2 has no field `text`; it has `body` and `id`",
            FIELD,
        ),
        (b"{}\n", "R462", "line 1 has no field `text`; it has none", FIELD),
        (
            b'{"text": "a"}\n{"text": \n',
            "R461",
            "line 2 is not valid JSON: Expecting value at column 9",
            "each line holds one JSON object",
        ),
        (b'"a"\n', "R461", 'line 1 must be a JSON object; it is "a"', 'write {"text": "..."}'),
        (b'{"text": ["a"]}\n', "R461", "line 1: `text` must be text; it is a list", FIELD),
        (b'{"text": "\xff"}\n', "R461", "line 1 is not UTF-8 text: the byte 0xff cannot be decoded", UTF8),
        (b'{"text": "a"}\n\xff\xfe{\x00', "R461", "line 2 is not UTF-8 text: the byte 0xff cannot be decoded", UTF8),
        (b'{"text": "a"}\n' + b"[" * 10**5, "R461", "line 2 nests values too deep", OBJECTS),
        (
            b'{"text": ' + b"1" * 5000 + b"}",
            "R461",
            "line 1 holds an integer of thousands of digits",
            "put it in quotes",
        ),
        (b'[{"text": "a"},\n', "R461", "line 1 is not valid JSON: Expecting value at column 16", ARRAY),
        (
            b'{"text": "a\x00"}\n',
            "R461",
            "line 1 is not valid JSON: Invalid control character at column 12",
            OBJECTS,
        ),
        (
            b'{"texts": "a"}\n',
            "R462",
            "line 1 has no field `text`; did you mean `texts`?; it has `texts`",
            "set `field: texts`, if that holds the text",
        ),
    ],
)  # fmt: skip
def test_bad_lines(tmp_path: Path, content: bytes, code: str, message: str, help: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert refused(path) == (code, f"`{path}` {message}", help)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert refused(tmp_path / name) == ("R463", f"`{tmp_path / name}` is empty: it holds no text", None)


@pytest.mark.parametrize(
    ("content", "message", "help"),
    [
        (b"abc\xe9", "line 1 is not UTF-8 text: the byte 0xe9 cannot be decoded", UTF8),
        (b"a\n" * 70_000 + b"\xff\n", "line 70001 is not UTF-8 text: the byte 0xff cannot be decoded", UTF8),
        ("abc\nd".encode("utf-16"), "line 1 is not UTF-8 text: the byte 0xff cannot be decoded", UTF8),
        ("abc".encode("utf-16-le"), "line 1 holds the character U+0000, which no text has",
         "name a text file; if it is UTF-16 text, save it with UTF-8 encoding"),
        (b"a\n" * 70_000 + b"b\x00", "line 70001 holds the character U+0000, which no text has",
         "name a text file; if it is UTF-16 text, save it with UTF-8 encoding"),
    ],
)  # fmt: skip
def test_text_of_another_encoding(tmp_path: Path, content: bytes, message: str, help: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert refused(path) == ("R461", f"`{path}` {message}", help)


def test_characters_that_cross_pieces_are_whole(tmp_path: Path) -> None:
    """`encoding.check` reads 65,536 bytes at a time."""
    path = tmp_path / "a.txt"
    path.write_text("x" + "€" * 50_000, encoding="utf-8")
    assert list(documents([path], "text")) == ["x" + "€" * 50_000]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}', ["a", "b"]),
        (b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n', ["a", "b"]),  # two files with a mark, joined
        (b'\xef\xbb\xbf\n{"text": "a"}', ["a"]),
        (b'{"text": "a"}\n{"text": null}\n{"text": []}\n{"text": ""}\n{"text": "b"}', ["a", "", "", "", "b"]),
        (b'{"text": "\\ud83d\\ude00 \\ude00 x\\ud83d"}\n', ["\U0001f600 \ufffd x\ufffd"]),
        (b'{"text": "a\\u0000b\\ufeff"}\n', ["a\0b\ufeff"]),  # written so that it is meant
    ],
)
def test_texts_of_unusual_files(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert list(documents([path], "text")) == texts


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfone\r\ntwo\rthree", b"one\ntwo\nthree"])
def test_marks_and_line_ends_of_a_text_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert list(documents([path], "text")) == ["one\ntwo\nthree"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", b'{"text": ""}\n{"text": null}\n{"text": " \\n"}', "all its 3 texts are empty or blank"),
        ("a.jsonl", b'{"text": "\\t"}', "its text is empty or blank"),
        ("a.txt", b" \n", "its text is empty or blank"),
    ],
)
def test_files_of_blank_texts(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refused(path) == ("R463", f"`{path}` holds no text: {what}", "name a text that holds some")


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.data.documents.LONGEST_LINE", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "' + b"a" * (1 << 20))
    assert refused(path) == ("R461", f"`{path}` line 2 is longer than 1 MiB", OBJECTS)


def test_a_long_text_file_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"0123456\r\n" * 50_000)
    [found] = documents([path], "text")
    assert isinstance(found, LongText)
    pieces = list(found)
    assert "".join(pieces) == "0123456\n" * 50_000
    assert max(map(len, pieces)) <= 1 << 16


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["one", "two"], "id": [1, 2]}), path)
    assert list(documents([path], "text")) == ["one", "two"]
    assert refused(path, "body") == ("R462", f"`{path}` has no field `body`; it has `text` and `id`", FIELD)
    assert refused(path, "id")[1] == f"`{path}` row 1: `id` must be text; it is 1"
    parquet.write_table(arrow.table({"text": ["one", None, "b"], "messages": [None, [{"role": "user"}], []]}), path)
    assert list(documents([path], "text")) == ["one", "", "b"]
    found = refused(path, "messages")[1]
    assert found == f"`{path}` row 2: `messages`[0]: `content` must be text; it is not there; it has `role`"
    path.write_bytes(b"PAR1 but no more")
    assert refused(path)[1].startswith(f"`{path}` is not a sound parquet file: ")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"")
    with pytest.raises(MachineError) as caught:
        list(documents([path], "text"))
    assert caught.value.message == f"reading `{path}` needs the package pyarrow, which is not installed"
    assert caught.value.help == "`pip install 'runner[data]'`"


def test_a_large_file_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(10_000)))
    assert sum(1 for _ in documents([path], "text")) == 10_000
