"""Where each value of a resolved recipe comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.errors import Span
from runner.recipe.compose import params
from runner.recipe.types import Path, Recipe

WRITTEN, SET, MATRIX, DEFAULT, DERIVED = "written", "set", "matrix", "default", "derived"


@dataclass(frozen=True)
class Origin:
    """The origin of a value, by `how`: written at `span`, `--set`, `matrix`, the schema's default, or derived.

    `text` gives details: the `--set`, the owner of the default, the source of a derived value. A value that was written
    with references has them in `reference`, and the origin of each param in `params`.
    """

    how: str
    span: Span | None = None
    text: str = ""
    reference: str | None = None
    params: tuple[tuple[str, Origin], ...] = ()

    def words(self) -> str:
        """Return the origin as text: `recipes/a.yaml:12`, `--set bits=3`, `a.yaml:7, bits from --set bits=3`."""
        place = f"{self.span.file}:{self.span.line}" if self.span is not None else ""
        if self.how == MATRIX:
            return f"matrix, {place}"
        if self.how != WRITTEN:
            return self.text
        return ", ".join([place, *(f"{name} from {self._param_words(origin)}" for name, origin in self.params)])

    def _param_words(self, origin: Origin) -> str:
        """Return the origin of a param as text, without the file where it is the same as this value's."""
        here = self.span.file if self.span is not None else None
        if origin.how == WRITTEN and origin.span is not None and origin.span.file == here:
            return f"line {origin.span.line}"
        return origin.words()


def trace(recipe: Recipe, sets: Sequence[str] = ()) -> dict[Path, Origin]:
    """Return the origin of every scalar and empty collection of `recipe.document`, in its order."""
    given = {name: f"--set {name}={text}" for name, _, text in (entry.partition("=") for entry in sets)}
    return {path: _origin(recipe, path, given) for path in _leaves(recipe.document, ())}


def _leaves(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, (*path, key))
    elif isinstance(value, list | tuple) and value:
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path


def _origin(recipe: Recipe, path: Path, given: Mapping[str, str]) -> Origin:
    if path[0] == "params" and len(path) == 2:
        return _param(recipe, str(path[1]), given)
    if path[0] == "matrix":
        return Origin(MATRIX, recipe.span(("matrix", path[1])))
    span = recipe.spans.get(path)
    if span is None:
        return _unwritten(path)
    if len(path) == 3 and path[0] == "steps" and path[2] == "id" and span == recipe.spans.get(path[:2]):
        return Origin(DERIVED, span, "the method's name")
    reference = recipe.references.get(path)
    if reference is None:
        return Origin(WRITTEN, span)
    names = dict.fromkeys(name for name in (match[1] for match in params.TOKEN.finditer(reference)) if name)
    used = tuple((name, _param(recipe, name, given)) for name in names)
    return Origin(WRITTEN, span, reference=reference, params=used)


def _param(recipe: Recipe, name: str, given: Mapping[str, str]) -> Origin:
    if name in given:
        return Origin(SET, recipe.spans.get(("params", name)), given[name])
    if name in recipe.matrix:
        return Origin(MATRIX, recipe.spans.get(("matrix", name)) or recipe.spans.get(("matrix",)))
    return Origin(WRITTEN, recipe.spans.get(("params", name)))


def _unwritten(path: Path) -> Origin:
    if path[0] == "steps" and len(path) > 2:
        return Origin(DEFAULT, text=f"default of {path[2]}")
    return Origin(DEFAULT, text=f"default of {path[0]}" if len(path) > 1 else "default")
