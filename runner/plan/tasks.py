"""The task files of a recipe, found and digested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runner.data import harness_tasks
from runner.errors import Diagnostic, RecipeError
from runner.plan.digests import digest_files, digest_named
from runner.plan.types import ResolvedTasks
from runner.recipe.schema import load
from runner.recipe.types import Recipe, Step


def find_tasks(recipe: Recipe, cache_file: Path | None) -> tuple[dict[str, dict[str, ResolvedTasks]], list[Diagnostic]]:
    """Return step id → parameter → the task files that it names, and complaints about those not found or readable."""
    found: dict[str, dict[str, ResolvedTasks]] = {}
    complaints: list[Diagnostic] = []
    for step in recipe.steps:
        for parameter, target in load.references(step.kind).items():
            if target == "tasks" and step.params.get(parameter):
                try:
                    found.setdefault(step.id, {})[parameter] = _resolved(step, parameter, cache_file)
                except RecipeError as error:
                    complaints += [d.at(recipe.step_span(step, d.path)) for d in error.diagnostics]
    return found, complaints


def _resolved(step: Step, parameter: str, cache_file: Path | None) -> ResolvedTasks:
    paths: dict[str, Path] = {}
    entries: list[str] = []
    complaints: list[Diagnostic] = []
    for index, entry in enumerate(step.params[parameter]):
        try:
            path = harness_tasks.locate(entry)
            if path is None:
                entries.append(entry)
                continue
            harness_tasks.definitions(path)
        except RecipeError as error:
            complaints += [replace(d, path=(parameter, index)) for d in error.diagnostics]
            continue
        paths[entry] = path
        entries.append(_digest(path, cache_file))
    if complaints:
        raise RecipeError(complaints)
    return ResolvedTasks(paths, tuple(entries))


def _digest(path: Path, cache_file: Path | None) -> str:
    """Return one digest over the names and contents of the files that decide what a local task does."""
    folder, chosen = (path, "") if path.is_dir() else (path.parent, path.name)
    digests = digest_files(harness_tasks.members(path), cache_file)
    contents = digest_named({str(file.relative_to(folder)): digest for file, digest in digests.items()})
    return f"{chosen} {contents}".strip()
