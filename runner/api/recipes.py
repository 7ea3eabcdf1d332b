"""Read recipes, and check them without applying them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from runner.api.folders import digest_cache, jobs_folder
from runner.errors import Diagnostic
from runner.model.architecture import remote_code
from runner.plan import lock_file, resolve
from runner.recipe import load as recipe_file
from runner.recipe.types import Recipe

Params = Mapping[str, bool | int | float | str] | Sequence[str]  # by name, or "name=value" each


@dataclass(frozen=True)
class Validation:
    """A valid recipe file: its recipes, one for each combination of its matrix, and warnings."""

    recipes: tuple[Recipe, ...]
    warnings: tuple[Diagnostic, ...] = field(default=())


def load(path: str | os.PathLike[str], *, sets: Params = (), locked: bool = False) -> Recipe:
    """Read a recipe: a file, or `pack:NAME/RECIPE` of an installed pack.

    `sets` changes params of the recipe: `{"bits": 3}`, or as the command line writes them, `["bits=3"]`. Parents that
    the recipe extends are those that its lock pins, if it has one; `locked` requires the lock.

    Raises RecipeError with every complaint about syntax, schema and the steps together; UsageError where `matrix`
    gives several combinations (`load_all` reads them all), and where `locked` finds no lock.
    """
    file = os.fspath(path)
    return recipe_file.load(file, arguments(sets), lock_file.use(file, strict=locked).pins)


def load_all(path: str | os.PathLike[str], *, sets: Params = (), locked: bool = False) -> tuple[Recipe, ...]:
    """Read every combination of the `matrix` of a recipe, in order; one recipe where it has no matrix.

    Arguments and errors are those of `load`.
    """
    file = os.fspath(path)
    return recipe_file.load_all(file, arguments(sets), lock_file.use(file, strict=locked).pins)


def trials(
    path: str | os.PathLike[str], *, sets: Params = (), locked: bool = False
) -> Callable[[Mapping[str, bool | int | float | str]], Recipe]:
    """Return a function from the values of a trial to its recipe; `path` is that of a recipe with a `search`.

    Arguments and errors are those of `load`. The function raises RecipeError for values that the recipe cannot have.
    """
    file = os.fspath(path)
    return recipe_file.trials(file, arguments(sets), lock_file.use(file, strict=locked).pins)


def validate(
    path: str | os.PathLike[str],
    *,
    sets: Params = (),
    jobs: str | os.PathLike[str] | None = None,
    locked: bool = False,
    trust_remote_code: bool = False,
    text_only: bool = False,
) -> Validation:
    """Check a file of recipes against their model and data, for the CPU; write nothing.

    `jobs` is the jobs folder whose cached digests save time (default: `$RUNNER_JOBS`, or `jobs`). `text_only` looks at
    neither model nor data. The other arguments are those of `load` and `plan`.

    Raises RecipeError with all complaints of the first stage that has any, MachineError for a package that is not
    installed, and UsageError for anything that drifted from the lock where `locked` forbids it; drift is a warning
    otherwise.
    """
    remote_code.allow(trust_remote_code)
    file = os.fspath(path)
    recipes = load_all(file, sets=sets, locked=locked)
    if text_only:
        return Validation(recipes, tuple(dict.fromkeys(_written(recipes))))
    root = jobs_folder(jobs)
    cache = digest_cache(root) if (root / "store").is_dir() else None  # validation writes no file
    locking = lock_file.use(file, strict=locked)
    plans = resolve.resolve_all(recipes, cache_file=cache, device="cpu", commits=locking.commits)
    drifted = [Diagnostic("R451", text, severity="warning") for text in locking.check(plans, cache)]
    warnings = [*_written(recipes), *(warning for plan in plans for warning in plan.warnings), *drifted]
    return Validation(recipes, tuple(dict.fromkeys(warnings)))


def _written(recipes: Sequence[Recipe]) -> list[Diagnostic]:
    return [warning for recipe in recipes for warning in recipe.warnings]


def arguments(sets: Params) -> tuple[str, ...]:
    """Return `sets` as the command line writes them: `name=value`, with `true` and `false`."""
    if isinstance(sets, str):
        return (sets,)
    if not isinstance(sets, Mapping):
        return tuple(sets)
    return tuple(f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in sets.items())
