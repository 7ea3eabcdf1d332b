"""The recipe as data, after syntax, params, extends, defaults and schema. Frozen: no later stage changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.errors import Diagnostic, Span
from runner.recipe.search_types import Search

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """`source` is a Hub id, a local folder or `demo:NAME`; `revision` a branch, tag or commit of a Hub model."""

    source: str
    revision: str | None = None


@dataclass(frozen=True)
class DataSpec:
    """One entry of `data`.

    `source`: `demo:NAME`, a local .txt/.jsonl/.parquet file, or a Hub dataset id. `samples` None means every window.
    `packing`: "documents" (bos + tokens + eos of each document, one stream) or "joined" (texts joined by a blank
    line, tokenized once, as the papers do); the stream is cut into windows of `sequence_length`, the tail dropped.
    `images` is the field that holds the paths of a record's images; each record is a window of its own then.
    """

    name: str
    source: str
    split: str | None
    sequence_length: int
    samples: int | None = None
    field: str = "text"
    packing: str = "documents"
    revision: str | None = None
    images: str | None = None


@dataclass(frozen=True)
class Step:
    """One entry of `steps` that `when` lets through. `params` hold every default; `source` is `from`, if written."""

    id: str
    kind: str
    params: Mapping[str, Any]
    source: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    path: Path = ()  # of the step's entry in the document: ("steps", 3)
    env: str | None = None  # the entry of `environments` that it runs in


@dataclass(frozen=True)
class Parent:
    """A recipe from elsewhere that a recipe extends: `name` is its address, `digest` the sha256 of its text.

    `commit` is that of a git repository, `package` the one that brings a pack, with its version: `acme-recipes 1.2`.
    """

    name: str
    digest: str
    commit: str | None = None
    package: str | None = None


@dataclass(frozen=True, repr=False)
class Recipe:
    """A resolved recipe.

    `document` is the standalone mapping (params substituted, parents merged, defaults filled), which `yaml_text.dump`
    writes as recipe.yaml. `spans` places values of the written text by path. `matrix` has the
    values of this combination of `matrix`, for every param that any combination sets. `parents` are those from
    elsewhere. `written` is `document` without the defaults: what the recipe and its parents write, and the params'
    values in it. `references` has by path the text, such as `${bits}`, that a value was written as. With `search`, the
    recipe is that of the params' own values, and its trials are others.
    """

    file: str
    name: str
    description: str
    params: Mapping[str, Any]
    model: ModelSpec
    seed: int
    data: Mapping[str, DataSpec]
    steps: tuple[Step, ...]
    document: Mapping[str, Any]
    spans: Mapping[Path, Span] = field(default_factory=dict)
    matrix: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    references: Mapping[Path, str] = field(default_factory=dict)
    serve: Mapping[str, str] = field(default_factory=dict)  # servers → version, and `gpu`
    warnings: tuple[Diagnostic, ...] = ()  # accepted, but probably not intended
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # as written, by name
    search: Search | None = None
    written: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        chosen = "".join(f" {name}={value!r}" for name, value in self.matrix.items())
        return f"<Recipe {self.name}{chosen}: {', '.join(step.id for step in self.steps)}>"

    def span(self, path: Path) -> Span | None:
        """Return the place of the value at `path`, or of its nearest enclosing value that was written."""
        while path:
            if path in self.spans:
                return self.spans[path]
            path = path[:-1]
        return self.spans.get(())

    def step_span(self, step: Step, param_path: Path = ()) -> Span | None:
        """Return the place of a parameter of a step (or of the step itself)."""
        return self.span((*step.path, step.kind, *param_path))
