"""Lock files: finding, reading and writing them, and checking plans against them.

The lock of recipes/x.yaml is recipes/x.lock, so that of recipe.yaml in a job directory is recipe.lock. A recipe.lock
is also that of the only recipe of a folder, where x.lock is not there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runner
from runner.errors import Diagnostic, RecipeError, UsageError
from runner.plan import assignments, lock, resolve_inputs
from runner.plan.assignments import Assigned
from runner.plan.lock import Document, Drift
from runner.plan.machine import package_version
from runner.plan.types import Plan
from runner.recipe.origins import git, place
from runner.recipe.origins.locate import Pins
from runner.recipe.schema import kinds as discovery
from runner.recipe.syntax import nodes, yaml_text
from runner.recipe.types import ModelSpec
from runner.steps import kinds

SHARED = "recipe.lock"
# Packages that compute, read and write tensors. Kinds of steps and of data add their own.
_ALWAYS = ("accelerate", "compressed-tensors", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")
HEAD = "# What the names in {recipe} stand for. Made by `runner lock`; `runner lock --upgrade` moves it on.\n"


def lock_path(recipe: str) -> Path:
    """Return the path of the file that `runner lock` writes."""
    return Path(recipe).with_suffix(".lock")


def find_lock(recipe: str) -> Path | None:
    """Return the path of a recipe's lock; None where it has none."""
    own = lock_path(recipe)
    if own.is_file():
        return own
    shared = own.with_name(SHARED)
    others = [path for path in own.parent.glob("*") if path.suffix in place.SUFFIXES and path.stem != own.stem]
    return shared if shared.is_file() and not others else None


def read(path: Path) -> dict[str, Any]:
    """Read a lock. Raises RecipeError (R450) where the file is not one."""
    try:
        tree = yaml_text.parse(yaml_text.decode(path.read_bytes(), str(path)), str(path))
    except OSError as error:
        message = f"cannot read `{path}`: {error.strerror or error}"
        raise RecipeError([Diagnostic("R450", message)]) from None
    document: dict[str, Any] = nodes.plain(tree)
    from jsonschema import Draft202012Validator  # here, because it takes long to import

    rules = json.loads((discovery.schemas_folder() / "job" / "lock.schema.json").read_text(encoding="utf-8"))
    errors = sorted(Draft202012Validator(rules).iter_errors(document), key=lambda error: list(map(str, error.path)))
    if errors:
        at = nodes.place(tree, tuple(errors[0].absolute_path))
        help = f"`runner lock RECIPE --upgrade` rewrites {path}"
        message = f"this is no lock that runner {runner.__version__} reads: {errors[0].message}"
        raise RecipeError([Diagnostic("R450", message, help, at)])
    return document


def dump(document: Document, recipe: str) -> str:
    """Return the text of a lock: one value a line, sorted."""
    return HEAD.format(recipe=Path(recipe).name) + yaml_text.dump(document, inline=False)


def lock_plans(
    plans: Sequence[Plan],
    cache_file: Path | None = None,
    hub_files: bool = False,
    assigned: Sequence[Assigned] = (),
) -> dict[str, Any]:
    """Return the lock of plans as they resolve now; `assigned` has the assignments of each, where they are known.

    `hub_files` also hashes the files of Hub models that are on this machine.
    """
    files: dict[str, dict[str, str]] = {}
    for plan in plans if hub_files else ():
        for model in plan.given().values():
            if model.commit is not None and model.path is not None:
                key = lock.model_key(ModelSpec(model.source, model.revision))
                files[key] = resolve_inputs.digest_files_of(model.path, model.facts, cache_file)
    entries = assignments.entries(zip(plans, assigned, strict=True)) if assigned else {}
    return lock.document(plans, runner.__version__, packages(plans), files, entries)


def packages(plans: Sequence[Plan]) -> dict[str, str]:
    """Return the installed packages that influence the bytes of these plans, with their versions."""
    names = set(_ALWAYS)
    for plan in plans:
        for step in plan.steps:
            source = discovery.find(step.kind)
            if source is not None:
                names |= {need.package for need in kinds.requirements(kinds.find(step.kind), step.params)}
                names |= {source.origin} - {"runner"}
        for entry in plan.data.values():
            names |= {"datasets"} if entry.commit is not None else set()
            names |= {"pyarrow"} if any(file.suffix == ".parquet" for file in entry.files) else set()
    versions = {name: package_version(name) for name in names if "/" not in name and "\\" not in name}
    return {name: version for name, version in sorted(versions.items()) if version is not None}


@dataclass(frozen=True)
class Locking:
    """A recipe and its lock, if it has one; with `strict` any drift is an error."""

    recipe: str
    path: Path | None = None
    document: Document | None = None
    strict: bool = False

    @property
    def pins(self) -> Pins:
        """Pins of parents, for runner.recipe.load."""
        return lock.parent_pins(self.document) if self.document is not None else Pins()

    @property
    def commits(self) -> dict[lock.Entry, str]:
        """Commits of Hub models and datasets, for runner.plan.resolve."""
        return lock.commits(self.document) if self.document is not None else {}

    def check(self, plans: Sequence[Plan], cache_file: Path | None = None) -> tuple[str, ...]:
        """Return a warning for every drift. Raises UsageError with all of them where drift is an error."""
        if self.document is None:
            return ()
        now = lock_plans(plans, cache_file, hub_files=self.strict)
        found = lock.drift(self.document, now)
        moved, unknown = _moved(plans, self.document)
        found = sorted([*found, *moved], key=lambda one: list(lock.flat(now)).index(one.entry))
        if found and self.strict:
            count = "1 thing" if len(found) == 1 else f"{len(found)} things"
            lines = "\n".join(f"  {one.line()}" for one in found)
            help = (
                f"`runner lock {self.recipe} --upgrade` takes what is there now, "
                f"`--upgrade NAME` one of {_quoted_names(found)}"
            )
            raise UsageError(f"{count} drifted from {self.path}:\n{lines}", help)
        return (*(f"drifted from {self.path}: {one.line()}" for one in found), *unknown)


def _quoted_names(found: Sequence[Drift]) -> str:
    return ", ".join(f"`{one.name}`" for one in found)


def use(recipe: str, *, strict: bool = False) -> Locking:
    """Read the lock of a recipe. Raises UsageError where it has none and `strict` asks for one."""
    path = find_lock(recipe)
    if path is None:
        if strict:
            raise UsageError(
                f"{recipe} has no lock: {lock_path(recipe)} is not there", f"`runner lock {recipe}` writes it"
            )
        return Locking(recipe)
    return Locking(recipe, path, read(path), strict)


def _moved(plans: Sequence[Plan], locked: Document) -> tuple[list[Drift], list[str]]:
    """Return drifts of git parents whose tag or branch now names another commit, and notes on those not reachable."""
    found, unknown = [], []
    for parent in {parent.name: parent for plan in plans for parent in plan.recipe.parents}.values():
        pinned = locked["parents"].get(parent.name, {}).get("commit")
        if pinned is None or not git.is_moving(parent):
            continue
        try:
            commit = git.current(parent)
        except place.PlaceError as error:
            unknown.append(f"whether {parent.name} moved is not known: {error.message}")
            continue
        if commit != pinned:
            now = f"now {commit[:12]} there" if commit is not None else "now gone"
            found.append(Drift(("parents", parent.name), f"locked at commit {pinned[:12]}, {now}"))
    return found, unknown
