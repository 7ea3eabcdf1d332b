"""Run the search of a recipe as `runner apply` does: with progress, and an outcome for every job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.commands import folders, together
from runner.commands.folders import Task
from runner.commands.together import How
from runner.recipe.search_types import describe
from runner.search import front

if TYPE_CHECKING:
    from runner.api.searching import Ended, Ending, TrialJob
    from runner.recipe.types import Recipe


def run(recipe: Recipe, how: How) -> Ended:
    """Run the search of a recipe, as runner.api.searching.run_search does."""
    from runner.api import recipes, searching

    if recipe.search is None:
        raise ValueError(f"{recipe.file} has no search")
    resolving = how.resolving

    def apply(trials: Sequence[TrialJob]) -> list[Ending]:
        if how.progress != "jsonl":
            _announce(trials)
        tasks = [Task(recipe.file, each.recipe) for each in trials]
        planned = {index: each.plan for index, each in enumerate(trials)}
        outcomes = together.apply_planned(tasks, planned, how)
        return [searching.Ending(outcomes[index].exit_code, outcomes[index].text) for index in planned]

    means = searching.Means(
        resolving.jobs,
        recipes.trials(recipe.file, sets=resolving.sets, locked=resolving.locked),
        lambda own: folders.planned(own, resolving),
        apply,
    )
    return searching.run_search(recipe, recipe.search, means, resolving.sets)


def summary(ended: Ended) -> dict[str, Any]:
    """Return a search that ended as the fields of an event."""
    state = ended.archive
    best = front.winner(state.search, state.trials)
    return {
        "search": state.id, "status": state.status, "exit_code": ended.code, "trials": len(state.trials),
        "winner": best.number if best is not None else None, "job": best.job if best is not None else None,
        "values": dict(best.values) if best is not None else None,
    }  # fmt: skip


def _announce(trials: Sequence[TrialJob]) -> None:
    from runner.report.console import console, show

    lines = [f"trial {each.proposal.number}: {describe(each.proposal.values)}" for each in trials]
    show([*lines, ""], console())
    sys.stdout.flush()
