"""Run the search of a recipe: its trials in batches, each batch as jobs that run together and share steps.

All state is on the disk: the results are in the jobs of the trials. Applied again, a search asks its sampler anew,
finds the results of the trials that ended, and goes on with those that did not.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner.api import execution, plans, recipes
from runner.api.execution import ENDED, Callback
from runner.api.folders import jobs_folder
from runner.api.jobs import Job
from runner.api.plans import JobPlan
from runner.api.recipes import Params
from runner.errors import GateFailed, Interrupted, MachineError, RecipeError, UsageError
from runner.execute.application import Manner
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.progress.board import Board, reason
from runner.recipe.search_types import Search as Specification
from runner.recipe.search_types import Value
from runner.recipe.types import Recipe
from runner.search import archive, best, front, trial
from runner.search.archive import Archive
from runner.search.study import Proposal, Study
from runner.search.trial import Trial

STOPS = (ENDED, MachineError.exit_code, Interrupted.exit_code)  # exit codes of a job that end the search, worst first


@dataclass(frozen=True)
class TrialJob:
    """The job of a trial to run."""

    proposal: Proposal
    recipe: Recipe
    plan: JobPlan


@dataclass(frozen=True)
class Ending:
    """How the job of a trial ended. `code` None: it was not started; `text` says what failed."""

    code: int | None
    text: str = ""


@dataclass(frozen=True)
class Means:
    """What a search works with.

    jobs    the jobs folder
    recipe  values → the recipe of a trial; raises RecipeError for values that it cannot have
    plan    plans the recipe of a trial
    run     runs the jobs of a batch, with their models on this machine, and returns how each ended
    """

    jobs: Path
    recipe: Callable[[Mapping[str, Value]], Recipe]
    plan: Callable[[Recipe], JobPlan]
    run: Callable[[Sequence[TrialJob]], Sequence[Ending]]


@dataclass(frozen=True)
class Ended:
    """A search that ended, and its exit code."""

    code: int
    archive: Archive


@dataclass(frozen=True, repr=False)
class Search:
    """A search that was run in the jobs folder `jobs`."""

    archive: Archive
    jobs: Path

    def __repr__(self) -> str:
        return f"<runner.Search {self.id}: {self.archive.status}, {len(self.trials)} trials>"

    @property
    def id(self) -> str:
        """The id under which `runner search show` has it."""
        return self.archive.id

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials in order: `number`, `values`, `state` ("met", "missed", "refused", "failed"), `measured`, `job`.

        `measured` has the objectives, then the constraints.
        """
        return self.archive.trials

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that keep every limit and that no other dominates, in the order of the first objective."""
        return tuple(front.front(self.archive.search, self.trials))

    @property
    def best(self) -> Trial | None:
        """The best trial; None where none keeps every limit."""
        return front.winner(self.archive.search, self.trials)

    def job(self, number: int | None = None) -> Job:
        """Return the job of a trial, or of the best. Raises UsageError where there is none."""
        return Job(str(best.chosen(self.archive, number).job), self.jobs)

    def write_best(self, path: str | os.PathLike[str], number: int | None = None) -> list[Path]:
        """Write the best trial, or one by its number, as a plain recipe with its lock; return both paths."""
        return best.write(self.jobs, self.archive, best.chosen(self.archive, number), Path(path))


def search(
    path: str | os.PathLike[str],
    *,
    sets: Params = (),
    jobs: str | os.PathLike[str] | None = None,
    on_event: Callback | None = None,
    threads: int | None = None,
    jobs_at_once: int = 1,
) -> Search:
    """Run the search of a recipe file to its end, and return it; run again, it goes on where it was stopped.

    `sets`, `jobs`, `on_event` and `threads` are those of `load`, `plan` and `apply`; each event has the id of its job
    as `job`. Up to `jobs_at_once` steps run at the same time, which changes no trial.

    Raises RecipeError and UsageError as `load` does, UsageError for a recipe without a `search`, Interrupted where it
    was stopped, and MachineError where this machine cannot run a trial. A search in which no trial keeps every limit is
    returned: its `best` is None.
    """
    file = os.fspath(path)
    recipe = recipes.load(file, sets=sets)
    if recipe.search is None:
        raise UsageError(f"{file} has no `search`", "`runner.apply(runner.plan(recipe))` applies it")
    root = jobs_folder(jobs)
    settings = ApplySettings(shlex.join(["runner", "apply", file]), threads, jobs_at_once=jobs_at_once)

    def run(trials: Sequence[TrialJob]) -> list[Ending]:
        boards = [Board() for _ in trials]
        sinks = [
            [board, *([execution.callback(_with_job(on_event, each.plan.job_id))] if on_event is not None else [])]
            for board, each in zip(boards, trials, strict=True)
        ]
        ready = [each.plan for each in trials]
        ends = execution.run_all(ready, settings, sinks=sinks, stopping=Stopping(), manner=Manner())
        for end in ends:
            if end.error is not None:
                raise end.error
        return [Ending(end.code, reason(board)) for board, end in zip(boards, ends, strict=True)]

    means = Means(root, recipes.trials(file, sets=sets), lambda own: plans.plan(own, jobs=root), run)
    ended = run_search(recipe, recipe.search, means, recipes.arguments(sets))
    if ended.code in STOPS:
        message = f"the search `{ended.archive.id}` stopped before its end"
        if ended.code == MachineError.exit_code:
            raise MachineError(message, f"`runner search show {ended.archive.id}` shows how far it is")
        raise Interrupted(message, "run the same search again: it goes on there")
    return Search(ended.archive, root)


def _with_job(call: Callback, job: str) -> Callback:
    return lambda event: call({**event, "job": job})


def run_search(recipe: Recipe, search: Specification, means: Means, sets: Sequence[str]) -> Ended:
    """Run a search to its end, or to where it is stopped, and write its archive after every batch.

    `sets` are the params that were set beside the file. The exit code is 0 where a trial wins, 3 where none keeps every
    limit, 2 where none could be planned, 1 where all that could failed, and that of the job which stopped the search
    (75, 130, 4).
    """
    study, state = Study(search, recipe.params), archive.new(recipe, search, sets)
    between = Stopping()
    between.on_force = _end
    batches = _Batches(search, means, between)
    with between.installed():
        return _run(study, state, batches, means.jobs)


def _end() -> None:
    raise KeyboardInterrupt


def _run(study: Study, state: Archive, batches: _Batches, root: Path) -> Ended:
    search = state.search
    while proposals := study.batch():
        if search.seconds is not None and state.seconds >= search.seconds:
            break
        found, stopped = batches.run(proposals)
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


def _exit_code(state: Archive) -> int:
    if front.winner(state.search, state.trials) is not None:
        return 0
    states = {each.state for each in state.trials}
    if states == {trial.REFUSED}:
        return RecipeError.exit_code
    return 1 if states <= {trial.REFUSED, trial.FAILED} else GateFailed.exit_code


class _Batches:
    """Runs batches of trials. `between` holds signals that come while no job runs."""

    def __init__(self, search: Specification, means: Means, between: Stopping) -> None:
        self._search, self._means, self._between = search, means, between

    def run(self, proposals: Sequence[Proposal]) -> tuple[list[Trial], int | None]:
        """Return the results of a batch; where one of its jobs stopped the search, those that are there and its code.

        Trials that ended before are not applied again.
        """
        results = [self._plan(proposal) for proposal in proposals]
        ends = self._apply([each for each in results if isinstance(each, TrialJob)])
        found = [each if isinstance(each, Trial) else self._result(each, ends) for each in results]
        codes = {Interrupted.exit_code if end.code is None else end.code for end in ends.values()}
        stopped = next((code for code in STOPS if code in codes), None)
        if stopped is None and self._between.asked:  # while no job ran
            stopped = self._between.exit_code
        return [each for each in found if each is not None], stopped

    def _plan(self, proposal: Proposal) -> TrialJob | Trial:
        """Return the job of a trial, or the trial where its values are refused."""
        try:
            recipe = self._means.recipe(proposal.values)
            return TrialJob(proposal, recipe, self._means.plan(recipe))
        except RecipeError as error:
            first, *more = error.diagnostics
            reason = f"{first.message}{f' (and {len(more)} more)' if more else ''}"
            return self._outside(proposal, trial.REFUSED, reason)

    def _apply(self, trials: Sequence[TrialJob]) -> dict[str, Ending]:
        """Run the jobs that have not ended, each once, and return how they ended by id."""
        first: dict[str, TrialJob] = {}  # values that decide nothing together give several trials one job
        for each in trials:
            if not trial.finished(self._means.jobs, each.plan.job_id):
                first.setdefault(each.plan.job_id, each)
        if not first or self._between.asked:
            return dict.fromkeys(first, Ending(None))
        ready = [replace(each, plan=each.plan.with_models()) for each in first.values()]
        return dict(zip(first, self._means.run(ready), strict=True))

    def _result(self, job: TrialJob, ends: Mapping[str, Ending]) -> Trial | None:
        """Return the result of a trial; None where its job stopped the search."""
        id, proposal = job.plan.job_id, job.proposal
        end = ends.get(id, Ending(0))
        if end.code in (0, GateFailed.exit_code):
            return trial.read(self._means.jobs, id, self._search, proposal.number, proposal.values)
        if end.code is None or end.code in STOPS:
            return None
        return replace(self._outside(proposal, trial.FAILED, end.text), job=id)

    def _outside(self, proposal: Proposal, state: str, reason: str) -> Trial:
        """Return a trial without results; its violation is that of one that misses every limit."""
        limits = len(self._search.measures)
        measured = (None,) * limits
        return Trial(proposal.number, dict(proposal.values), state, measured, 10.0 * (1 + limits), reason)
