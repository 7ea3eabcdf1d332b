"""Several recipes at once: the files that an argument names, the recipes in them, the steps that their jobs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunnerError, UsageError

if TYPE_CHECKING:
    from runner.api.plans import JobPlan
    from runner.commands.options import Resolving
    from runner.plan.types import Plan
    from runner.recipe.types import Recipe


@dataclass(frozen=True)
class Task:
    """A requested job: its recipe, or the error in its file."""

    file: str
    recipe: Recipe | None
    error: RunnerError | None = None

    @property
    def name(self) -> str:
        """`llama-int4`, `llama-int4 (bits=3, group_size=64)`, or the file where it holds no recipe."""
        return named(self.recipe.name, self.recipe.matrix) if self.recipe is not None else self.file


def values(matrix: Mapping[str, Any]) -> str:
    """Return the values of a combination as text: `bits=3, group_size=64`."""
    from runner.recipe.compose.matrix import describe

    return describe(matrix)


def named(recipe: str, matrix: Mapping[str, Any]) -> str:
    """Return the name of a combination of a recipe: `llama-int4 (bits=3)`."""
    return f"{recipe} ({values(matrix)})" if matrix else recipe


def files(arguments: Sequence[str]) -> list[str]:
    """Return the files that arguments name; a folder names the .yaml and .yml files directly in it."""
    found: list[str] = []
    for argument in arguments:
        folder = Path(argument)
        if not folder.is_dir():
            found.append(argument)
            continue
        names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml") and p.name[0] != ".")
        if not names:
            raise UsageError(f"there is no recipe in the folder {argument}", "recipes end in .yaml or .yml")
        found += [str(folder / name) for name in names]
    return found


def tasks(arguments: Sequence[str], how: Resolving) -> list[Task]:
    """Return a task for every combination of every recipe, in order; a file that is named twice counts once.

    Where there is only one file, its error is raised.
    """
    from runner.api import recipes

    paths = list(dict.fromkeys(files(arguments)))
    found: list[Task] = []
    for path in paths:
        try:
            found += [Task(path, recipe) for recipe in recipes.load_all(path, sets=how.sets, locked=how.locked)]
        except RunnerError as error:
            if len(paths) == 1:
                raise
            found.append(Task(path, None, error))
    return found


def planned(recipe: Recipe, how: Resolving) -> JobPlan:
    """Plan a recipe with the options of a command."""
    from runner.api import plans

    return plans.plan(
        recipe, jobs=how.jobs, device=how.device, locked=how.locked, trust_remote_code=how.trust_remote_code,
        offer=how.offer,
    )  # fmt: skip


def shared(plans: Sequence[tuple[str, Plan]]) -> list[tuple[str, list[str]]]:
    """Return the steps that several jobs share: (the step's id in the first of them, the names of the jobs)."""
    users: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    for name, plan in plans:
        for step in plan.steps:
            ids.setdefault(step.key, step.id)
            if name not in users.setdefault(step.key, []):
                users[step.key].append(name)
    return [(ids[key], names) for key, names in users.items() if len(names) > 1]
