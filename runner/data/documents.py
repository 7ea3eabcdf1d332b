"""The documents of a text: streamed from .jsonl, .txt and .parquet files, or from a Hub dataset. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from runner.data import encoding
from runner.data.chat_template import Conversation, conversation
from runner.data.long_text import PIECE
from runner.errors import Diagnostic, MachineError, RecipeError
from runner.recipe.types import DataSpec
from runner.wording import did_you_mean, show, ticked

LONGEST_LINE = 256 << 20  # bytes; a longer line is not accepted as JSONL

_EXTRA = "`pip install 'runner[data]'`"
_FIELD = "set `field` of the data entry to the field that holds the text"
_OBJECTS = "each line holds one JSON object"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class LongText:
    """A text file that is one document, longer than a piece; iteration reads it in parts."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        return encoding.read(self.path)


Document = str | LongText | Conversation


def documents(files: Sequence[Path], field: str) -> Iterator[Document]:
    """Yield the texts of files, in order.

    A .txt file is one document; elsewhere each row's `field` is one, or chat messages. A row whose field is null, or a
    list without messages, is an empty text. Raises RecipeError with the file, the line and the present fields, also for
    a file in which every text is empty or blank.
    """
    readers = {".jsonl": _lines, ".txt": _text_file, ".parquet": _parquet}
    for path in files:
        yield from _not_blank(readers[path.suffix](path, field), f"`{path}`")


def _not_blank(found: Iterable[Document], where: str) -> Iterator[Document]:
    """Yield the same documents. Raises RecipeError (R463) where none of them has text."""
    blank, rows = True, 0
    for document in found:
        rows += 1
        blank = blank and isinstance(document, str) and not document.strip()
        yield document
    if not rows:
        raise _error("R463", f"{where} is empty: it holds no text")
    if blank:
        what = "its text is" if rows == 1 else f"all its {rows:,} texts are"
        raise _error("R463", f"{where} holds no text: {what} empty or blank", "name a text that holds some")


def documents_of(spec: DataSpec, files: Sequence[Path]) -> Iterator[Document]:
    """Yield the texts of a located data entry; without files it is a Hub dataset, streamed at `spec.revision`."""
    return documents(files, spec.field) if files else _hub(spec)


def _text_file(path: Path, field: str) -> Iterator[Document]:
    encoding.check(path)
    if path.stat().st_size > PIECE:
        yield LongText(path)
    elif text := "".join(encoding.read(path)):
        yield text


def _lines(path: Path, field: str) -> Iterator[Document]:
    for row, where in json_rows(path):
        yield _text(row, field, where)


def json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a .jsonl file, each with its place for complaints. Raises RecipeError (R461)."""
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            where = f"`{path}` line {number}"
            if len(line) > LONGEST_LINE:
                raise _error("R461", f"{where} is longer than {LONGEST_LINE >> 20} MiB", _OBJECTS)
            text = encoding.decode(line, where).strip()
            if text:
                yield _row(text, where), where


def _row(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except RecursionError:
        raise _error("R461", f"{where} nests values too deep", _OBJECTS) from None
    except json.JSONDecodeError as error:
        message = f"{where} is not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        help = "the file is one JSON array: write each of its objects on a line of its own, without commas between"
        raise _error("R461", message, help if text.startswith("[") else _OBJECTS) from None
    except ValueError:  # Python's error for an integer of more than 4300 digits
        raise _error("R461", f"{where} holds an integer of thousands of digits", "put it in quotes") from None
    if not isinstance(row, dict):
        raise _error("R461", f"{where} must be a JSON object; it is {show(row)}", 'write {"text": "..."}')
    return row


def _parquet(path: Path, field: str) -> Iterator[Document]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MachineError(f"reading `{path}` needs the package pyarrow, which is not installed", _EXTRA) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise _missing_field(f"`{path}`", field, names)
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=[field]):
                for value in batch.column(0):
                    row += 1
                    yield _text({field: value.as_py()}, field, f"`{path}` row {row}")
    except arrow.ArrowException as error:
        raise _error("R461", f"`{path}` is not a sound parquet file: {str(error).splitlines()[0]}") from None


def _hub(spec: DataSpec) -> Iterator[Document]:
    from runner.model.source.hub import hub_errors_as_diagnostics

    try:
        import datasets
    except ImportError:
        raise MachineError(
            f"data `{spec.name}`: the Hub dataset `{spec.source}` needs the package datasets, which is not installed",
            _EXTRA,
        ) from None
    id, _, configuration = spec.source.partition(":")
    with hub_errors_as_diagnostics("dataset", id, spec.revision):
        try:
            rows = datasets.load_dataset(
                id, configuration or None, split=spec.split, revision=spec.revision, streaming=True
            )
        except ValueError as error:  # an unknown split, or a configuration that must be named; the text lists them
            message = f"data `{spec.name}`: {str(error).strip().splitlines()[0]}"
            raise _error("R466", message, "a configuration is written `org/name:configuration`") from None
        texts = (_text(row, spec.field, f"row {number} of `{spec.source}`") for number, row in enumerate(rows, 1))
        yield from _not_blank(texts, f"the split `{spec.split}` of `{spec.source}`")


def _text(row: dict[str, Any], field: str, where: str) -> Document:
    if field not in row:
        raise _missing_field(where, field, list(row))
    value = row[field]
    if value is None or value == []:
        return ""
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return conversation(without_surrogates(value), f"{where}: `{field}`")
    if not isinstance(value, str):
        raise _error("R461", f"{where}: `{field}` must be text; it is {show(row[field])}", _FIELD)
    return str(without_surrogates(value))


def without_surrogates(value: Any) -> Any:
    """Return the value with U+FFFD for lone surrogates, which JSON can write (`\\ud83d`) and UTF-8 cannot hold."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(part) for key, part in value.items()}
    return [without_surrogates(part) for part in value] if isinstance(value, list) else value


def _missing_field(where: str, field: str, present: Sequence[str]) -> RecipeError:
    have = f"it has {ticked(present)}" if present else "it has none"
    help = f"set `field: {present[0]}`, if that holds the text" if len(present) == 1 else _FIELD
    return _error("R462", f"{where} has no field `{field}`{did_you_mean(field, present)}; {have}", help)


def _error(code: str, message: str, help: str | None = None) -> RecipeError:
    return RecipeError([Diagnostic(code, message, help)])
