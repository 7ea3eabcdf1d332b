"""The text of `runner show`: the resolved recipe, with the origin of every value as a comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from runner import wording
from runner.recipe.provenance import Origin
from runner.recipe.syntax import yaml_text
from runner.recipe.types import Path, Recipe

_STYLES = {"written": "green", "set": "bold magenta", "matrix": "magenta", "default": "dim", "derived": "dim"}
_FURTHEST = 60  # the rightmost column at which origins begin


def lines(recipe: Recipe, origins: Mapping[Path, Origin]) -> list[Text]:
    """Return YAML, one value on each line, with its origin as a comment."""
    rows = list(_rows(recipe.document, (), ""))
    column = min(_FURTHEST, max((len(row) for row, path in rows if path is not None), default=0))
    result = []
    for row, path in rows:
        line = Text(row)
        if path is not None:
            origin = origins[path]
            away = origin.span is not None and origin.span.file != recipe.file and origin.how == "written"
            line.append(" " * max(2, column - len(row) + 2))
            line.append(f"# {origin.words()}", "cyan" if away else _STYLES[origin.how])
        result.append(line)
    return result


def document(recipe: Recipe, origins: Mapping[Path, Origin]) -> dict[str, Any]:
    """Return the document of `runner show --json`: the recipe, the origins of its values, its parents."""
    return {
        "schema": 1,
        "file": recipe.file,
        "recipe": recipe.document,
        "origins": [{"path": list(path), "name": wording.label(path), **as_json(o)} for path, o in origins.items()],
        "parents": [
            {"name": parent.name, "digest": parent.digest, "commit": parent.commit, "package": parent.package}
            for parent in recipe.parents
        ],
    }


def as_json(origin: Origin) -> dict[str, Any]:
    """Return an origin as JSON; `file`, `line` and `column` are null where the value is written nowhere."""
    span = origin.span
    return {
        "from": origin.how, "file": span.file if span else None, "line": span.line if span else None,
        "column": span.column if span else None, "text": origin.text or None, "reference": origin.reference,
        "params": {name: as_json(inner) for name, inner in origin.params},
    }  # fmt: skip


def _rows(value: Any, path: Path, indent: str) -> Iterator[tuple[str, Path | None]]:
    """Yield lines of YAML in block style, each with the path of its value, if it has a single one."""
    for key, entry in value.items():
        yield from _entry(f"{indent}{yaml_text.scalar(str(key))}:", entry, (*path, key), indent)


def _entry(head: str, value: Any, path: Path, indent: str) -> Iterator[tuple[str, Path | None]]:
    if isinstance(value, Mapping) and value:
        yield head, None
        yield from _rows(value, path, indent + "  ")
    elif isinstance(value, list | tuple) and value:
        yield head, None
        for index, item in enumerate(value):
            yield from _item(item, (*path, index), indent + "  ")
    else:
        yield f"{head} {_scalar(value)}", path


def _item(value: Any, path: Path, indent: str) -> Iterator[tuple[str, Path | None]]:
    if not isinstance(value, Mapping) or not value:
        yield from _entry(f"{indent}-", value, path, indent)
        return
    for number, (row, at) in enumerate(_rows(value, path, indent + "  ")):
        yield (f"{indent}- {row[len(indent) + 2 :]}" if number == 0 else row), at


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    return "[]" if isinstance(value, list | tuple) else yaml_text.scalar(value)
