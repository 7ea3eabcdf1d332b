"""Run the search of a recipe: its trials in batches, each batch as jobs that run together and share steps.

All state is on the disk: the results are in the jobs of the trials. Applied again, a search asks its sampler anew,
finds the results of the trials that ended, and goes on with those that did not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runner.commands import folders, several, together
from runner.commands.folders import Task
from runner.commands.several import Outcome
from runner.commands.together import How
from runner.errors import GateFailed, Interrupted, MachineError, RecipeError
from runner.recipe.search_types import Value, describe
from runner.search import archive, front, trial
from runner.search.archive import Archive
from runner.search.study import Proposal, Study
from runner.search.trial import Trial

if TYPE_CHECKING:
    from runner.api.plans import JobPlan
    from runner.execute.stopping import Stopping
    from runner.recipe.types import Recipe

STOPS = (Interrupted.exit_code, several.ENDED, MachineError.exit_code)  # exit codes of a job that end the search


@dataclass(frozen=True)
class Ended:
    """A search that ended, and its exit code."""

    code: int
    archive: Archive


def run(recipe: Recipe, how: How) -> Ended:
    """Run the search of a recipe to its end, or to where it is stopped, and write its archive after every batch.

    The exit code is 0 where a trial wins, 3 where none keeps every limit, 2 where none could be planned, 1 where all
    that could failed, and that of the job which stopped the search (75, 130, 4).
    """
    from runner.api import recipes
    from runner.execute.stopping import Stopping

    search = recipe.search
    if search is None:
        raise ValueError(f"{recipe.file} has no search")
    resolving = how.resolving
    trials = recipes.trials(recipe.file, sets=resolving.sets, locked=resolving.locked)
    study = Study(search, recipe.params)
    state = archive.new(recipe, search, resolving.sets)
    between = Stopping()
    between.on_force = _end
    batches = _Batches(trials, state, how, between)
    with between.installed():
        return _run(study, state, batches, between)


def _end() -> None:
    raise KeyboardInterrupt


def _run(study: Study, state: Archive, batches: _Batches, between: Stopping) -> Ended:
    search, root = state.search, batches.root
    while proposals := study.batch():
        if search.seconds is not None and state.seconds >= search.seconds:
            break
        found, stopped = batches.run(proposals)
        if stopped is None and between.asked:  # while no job ran
            stopped = between.exit_code
        if stopped is not None:
            status = archive.FAILED if stopped == MachineError.exit_code else archive.INTERRUPTED
            state = replace(state, trials=(*study.trials, *found), status=status)
            archive.write(root, state)
            return Ended(stopped, state)
        study.tell(proposals, found)
        state = replace(state, trials=tuple(study.trials))
        archive.write(root, state)
    state = replace(state, status=archive.DONE)
    archive.write(root, state)
    return Ended(_exit_code(state), state)


def summary(ended: Ended) -> dict[str, Any]:
    """Return a search that ended as the fields of an event."""
    state = ended.archive
    best = front.winner(state.search, state.trials)
    return {
        "search": state.id, "status": state.status, "exit_code": ended.code, "trials": len(state.trials),
        "winner": best.number if best is not None else None, "job": best.job if best is not None else None,
        "values": dict(best.values) if best is not None else None,
    }  # fmt: skip


def _exit_code(state: Archive) -> int:
    if front.winner(state.search, state.trials) is not None:
        return 0
    states = {each.state for each in state.trials}
    if states == {trial.REFUSED}:
        return RecipeError.exit_code
    return 1 if states <= {trial.REFUSED, trial.FAILED} else GateFailed.exit_code


class _Batches:
    """Runs batches of trials in the jobs folder `root`. `between` holds signals that come while no job runs."""

    def __init__(
        self, recipe_of: Callable[[Mapping[str, Value]], Recipe], state: Archive, how: How, between: Stopping
    ) -> None:  # fmt: skip
        self._recipe_of, self._state, self._how, self._between = recipe_of, state, how, between
        self.root = how.resolving.jobs

    def run(self, proposals: list[Proposal]) -> tuple[list[Trial], int | None]:
        """Return the results of a batch; where one of its jobs stopped the search, those that are there and its code.

        Trials that ended before are not applied again.
        """
        planned: dict[int, JobPlan] = {}
        found: dict[int, Trial] = {}
        tasks: list[Task] = []
        for index, proposal in enumerate(proposals):
            result = self._plan(proposal)
            tasks.append(Task(self._state.file, result[0] if isinstance(result, tuple) else None))
            if isinstance(result, Trial):
                found[index] = result
            else:
                planned[index] = result[1]
        jobs = {index: plan.job_id for index, plan in planned.items()}
        outcomes = self._apply(proposals, tasks, planned)
        for index, job in jobs.items():
            code = outcomes[job].exit_code if job in outcomes else 0
            if code in (0, GateFailed.exit_code):
                proposal = proposals[index]
                found[index] = trial.read(self.root, job, self._state.search, proposal.number, proposal.values)
            elif code is not None and code not in STOPS:
                found[index] = replace(self._outside(proposals[index], trial.FAILED, outcomes[job].text), job=job)
        codes = [several.exit_code([outcome]) for outcome in outcomes.values()]
        stops = [code for code in codes if code in STOPS]
        return [found[index] for index in sorted(found)], several.worst(stops) if stops else None

    def _apply(
        self, proposals: list[Proposal], tasks: list[Task], planned: Mapping[int, JobPlan]
    ) -> dict[str, Outcome]:
        """Apply the jobs that have not ended, each once, and return their outcomes by id."""
        first: dict[str, int] = {}  # values that decide nothing together give several trials one job
        for index, plan in planned.items():
            if not trial.finished(self.root, plan.job_id):
                first.setdefault(plan.job_id, index)
        if not first or self._between.asked:
            return {job: several.not_started(tasks[index]) for job, index in first.items()}
        chosen = {index: planned[index] for index in first.values()}
        self._announce(proposals, chosen)
        ready = {index: plan.with_models() for index, plan in chosen.items()}
        outcomes = together.apply_planned(tasks, ready, self._how)
        return {job: outcomes[index] for job, index in first.items()}

    def _plan(self, proposal: Proposal) -> tuple[Recipe, JobPlan] | Trial:
        """Return the recipe and the plan of a trial, or the trial where its values are refused."""
        try:
            recipe = self._recipe_of(proposal.values)
            return recipe, folders.planned(recipe, self._how.resolving)
        except RecipeError as error:
            first, *more = error.diagnostics
            reason = f"{first.message}{f' (and {len(more)} more)' if more else ''}"
            return self._outside(proposal, trial.REFUSED, reason)

    def _outside(self, proposal: Proposal, state: str, reason: str) -> Trial:
        """Return a trial without results; its violation is that of one that misses every limit."""
        limits = len(self._state.search.measures)
        measured = (None,) * limits
        return Trial(proposal.number, dict(proposal.values), state, measured, 10.0 * (1 + limits), reason)

    def _announce(self, proposals: list[Proposal], planned: Mapping[int, JobPlan]) -> None:
        if self._how.progress != "jsonl":
            from runner.report.console import console, show

            lines = [f"trial {proposals[index].number}: {describe(proposals[index].values)}" for index in planned]
            show([*lines, ""], console())
            sys.stdout.flush()
