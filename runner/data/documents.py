"""The documents of a text: streamed from .jsonl, .txt and .parquet files, or from a Hub dataset. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runner.data.chat_template import Conversation, conversation
from runner.errors import Diagnostic, MachineError, RecipeError
from runner.recipe.types import DataSpec
from runner.wording import show, ticked

Document = str | Conversation

_EXTRA = "`pip install 'runner[data]'`"


def documents(files: Sequence[Path], field: str) -> Iterator[Document]:
    """The texts of files, in order. A .txt file is one document; elsewhere each row's `field` is one, or chat messages.

    RecipeError names the file, the line and the fields that are there.
    """
    readers = {".jsonl": _lines, ".txt": _whole, ".parquet": _parquet}
    for path in files:
        empty = True
        for text in readers[path.suffix](path, field):
            empty = False
            yield text
        if empty:
            raise _error("R463", f"`{path}` is empty: it holds no text")


def documents_of(spec: DataSpec, files: Sequence[Path]) -> Iterator[Document]:
    """The texts of a located data entry; one without files is a Hub dataset, streamed at `spec.revision`."""
    return documents(files, spec.field) if files else _hub(spec)


def _whole(path: Path, field: str) -> Iterator[str]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise _error("R461", f"`{path}` is not UTF-8 text: byte {error.start:,} cannot be decoded", _UTF8) from None
    if text:
        yield text


def _lines(path: Path, field: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"`{path}` line {number}"
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                raise _error("R461", f"{where} is not UTF-8 text", _UTF8) from None
            except ValueError as error:
                raise _error("R461", f"{where} is not valid JSON: {error}", "each line holds one JSON object") from None
            if not isinstance(row, dict):
                raise _error("R461", f"{where} must be a JSON object; it is {show(row)}", 'write {"text": "..."}')
            yield _text(row, field, where)


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
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text({field: value}, field, f"`{path}` row {row}")
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
    empty = True
    with hub_errors_as_diagnostics("dataset", id, spec.revision):
        try:
            rows = datasets.load_dataset(
                id, configuration or None, split=spec.split, revision=spec.revision, streaming=True
            )
        except ValueError as error:  # an unknown split, or a configuration that must be named; the text lists them
            message = f"data `{spec.name}`: {str(error).strip().splitlines()[0]}"
            raise _error("R466", message, "a configuration is written `org/name:configuration`") from None
        for number, row in enumerate(rows, 1):
            empty = False
            yield _text(row, spec.field, f"row {number} of `{spec.source}`")
    if empty:
        raise _error("R463", f"the split `{spec.split}` of `{spec.source}` is empty: it holds no text")


def _text(row: dict[str, Any], field: str, where: str) -> Document:
    if field not in row:
        raise _missing_field(where, field, list(row))
    value = row[field]
    if isinstance(value, list) and (not value or any(isinstance(entry, dict) for entry in value)):
        return conversation(value, f"{where}: `{field}`")
    if not isinstance(value, str):
        raise _error("R461", f"{where}: `{field}` must be text; it is {show(row[field])}", _FIELD)
    return str(row[field])


def _missing_field(where: str, field: str, present: Sequence[str]) -> RecipeError:
    have = f"it has {ticked(present)}" if present else "it has none"
    return _error("R462", f"{where} has no field `{field}`; {have}", _FIELD)


_FIELD = "set `field` of the data entry to the field that holds the text"
_UTF8 = "save it with UTF-8 encoding"


def _error(code: str, message: str, help: str | None = None) -> RecipeError:
    return RecipeError([Diagnostic(code, message, help)])
