"""The folder of a search in the jobs folder: its trials in order, and how it stands.

    <jobs>/searches/<recipe>-<hash>/search.json

The results themselves are in the jobs of the trials: a search goes on from those, and search.json only lists them. The
hash is of the recipe and of the search without its budget, so that a search with a larger budget is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import UsageError
from runner.job import files
from runner.job.directory import read_json
from runner.recipe.search_types import Constraint, Dimension, Objective, Search
from runner.recipe.types import Recipe
from runner.search.trial import Trial

FOLDER, NAME = "searches", "search.json"
RUNNING, DONE, INTERRUPTED, FAILED = "running", "done", "interrupted", "failed"


@dataclass(frozen=True)
class Archive:
    """A search as it stands.

    `file` is its recipe's, and `sets` are the params that were set beside it, as "name=value". `status` is RUNNING also
    where its process was killed.
    """

    id: str
    recipe: str
    file: str
    search: Search
    trials: tuple[Trial, ...] = ()
    status: str = RUNNING
    sets: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The time of computing: that of the steps of all trials, each counted once."""
        return sum({key: value for trial in self.trials for key, value in (trial.keys or {}).items()}.values())


def new(recipe: Recipe, search: Search, sets: Sequence[str] = ()) -> Archive:
    """Return the archive of a search that has not begun."""
    identity = {"recipe": recipe.document, "search": asdict(replace(search, trials=None, seconds=None))}
    digest = hashlib.sha256(files.canonical(identity).encode()).hexdigest()
    return Archive(f"{recipe.name}-{digest[:12]}", recipe.name, recipe.file, search, sets=tuple(sets))


def folder(root: Path, id: str) -> Path:
    return root / FOLDER / id


def write(root: Path, archive: Archive) -> None:
    """Replace search.json."""
    path = folder(root, archive.id) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, files.pretty(document(archive)))


def document(archive: Archive) -> dict[str, Any]:
    """Return an archive as JSON."""
    return {"schema": 1, **asdict(archive)}


def load(root: Path, name: str | None) -> Archive:
    """Return the search of an id, of the beginning of one, or of a recipe; the latest of several, or of all.

    UsageError where there is none.
    """
    found = sorted((root / FOLDER).glob(f"*/{NAME}"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
    if not found:
        raise UsageError(f"there is no search in {root}", "`runner apply RECIPE` runs the search of a recipe")
    ids = [path.parent.name for path in found]
    wanted = [id for id in ids if name is None or id.startswith(name)]
    if not wanted:
        known = ", ".join(f"`{id}`" for id in sorted(ids))
        raise UsageError(f"there is no search `{name}` in {root}", f"there are {known}")
    return _read(root, wanted[-1])


def _read(root: Path, id: str) -> Archive:
    path = folder(root, id) / NAME
    found = read_json(path)
    try:
        written = found["search"]
        search = Search(**written | {
            "space": tuple(Dimension(**one | {"choices": tuple(one["choices"])}) for one in written["space"]),
            "objectives": tuple(Objective(**one) for one in written["objectives"]),
            "constraints": tuple(Constraint(**one) for one in written["constraints"]),
        })  # fmt: skip
        order = [one.name for one in search.space]
        trials = tuple(_trial(one, order) for one in found["trials"])
        return Archive(
            id, found["recipe"], found["file"], search, trials, found["status"], tuple(found.get("sets", ()))
        )
    except (KeyError, TypeError):
        raise UsageError(f"{path} cannot be read", "apply the recipe again: it writes the file anew") from None


def _trial(written: Mapping[str, Any], order: Sequence[str]) -> Trial:
    values = {name: written["values"][name] for name in order if name in written["values"]}
    return Trial(**{**written, "values": values, "measured": tuple(written["measured"])})
