"""Documents out of files, and what is said about files that hold none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.data.documents import documents
from runner.errors import MachineError, RecipeError

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
            "line 2 is not valid JSON: Expecting value: line 2 column 1 (char 10)",
            "each line holds one JSON object",
        ),
        (b'"a"\n', "R461", 'line 1 must be a JSON object; it is "a"', 'write {"text": "..."}'),
        (b'{"text": ["a"]}\n', "R461", "line 1: `text` must be text; it is a list", FIELD),
        (b'{"text": null}\n', "R461", "line 1: `text` must be text; it is nothing", FIELD),
        (b'{"text": "\xff"}\n', "R461", "line 1 is not UTF-8 text", "save it with UTF-8 encoding"),
    ],
)
def test_bad_lines(tmp_path: Path, content: bytes, code: str, message: str, help: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert refused(path) == (code, f"`{path}` {message}", help)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert refused(tmp_path / name) == ("R463", f"`{tmp_path / name}` is empty: it holds no text", None)


def test_text_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xe9")
    message = f"`{path}` is not UTF-8 text: byte 3 cannot be decoded"
    assert refused(path) == ("R461", message, "save it with UTF-8 encoding")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["one", "two"], "id": [1, 2]}), path)
    assert list(documents([path], "text")) == ["one", "two"]
    assert refused(path, "body") == ("R462", f"`{path}` has no field `body`; it has `text` and `id`", FIELD)
    assert refused(path, "id")[1] == f"`{path}` row 1: `id` must be text; it is 1"
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
