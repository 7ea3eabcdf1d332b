"""A study: which trials come next, from the results of those before.

It is a pure function of the search and of the results: the same results, told in the same order, give the same trials.
So a search that was interrupted is rebuilt by asking again, with the results that are on the disk.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runner.errors import MachineError
from runner.recipe.compose import spaces
from runner.recipe.search_types import Dimension, Search, Value
from runner.search.trial import FAILED, Trial

_MOST_REPEATS = 25  # proposals in a row that were there before, after which a sampler has nothing new
_MOST_LISTED = 10_000  # combinations of a space from which one that is left is drawn then
_STARTUP = 6  # trials that TPE draws at random; they do not depend on the budget, which may be raised later


@dataclass(frozen=True)
class Proposal:
    """The values of a trial to run; params that do not vary are left out. `handle` is the sampler's."""

    number: int
    values: Mapping[str, Value]
    handle: Any = None


class Sampler(Protocol):
    """What chooses values, or takes those of `point`. `ask` returns None where there are no more.

    Each handle is told one result.
    """

    def ask(self, point: Mapping[str, Value] | None = None) -> tuple[dict[str, Value], Any] | None: ...
    def tell(self, handle: Any, trial: Trial) -> None: ...


class Study:
    """The trials of a search in order. `batch` proposes those that come next, `tell` takes their results."""

    def __init__(self, search: Search, defaults: Mapping[str, Value]) -> None:
        self._search = search
        self._defaults = defaults
        self._sampler: Sampler = _Grid(search, defaults) if search.sampler == "grid" else _Optuna(search, defaults)
        self._results: dict[str, Trial] = {}
        self._repeats: dict[str, list[Any]] = {}  # handles of proposals that repeat one of the same batch
        size = spaces.size(search.space)
        rest = list(spaces.points(search.space, defaults)) if size is not None and size <= _MOST_LISTED else []
        random.Random(search.seed).shuffle(rest)
        self._rest = iter(rest)  # for when the sampler repeats itself
        self.trials: list[Trial] = []

    def batch(self) -> list[Proposal]:
        """Return the next trials, which differ from all before; [] where the budget of trials or the space is spent.

        Where the sampler repeats itself, they are drawn from the combinations that are left.
        """
        limit = self._search.trials
        room = self._search.batch if limit is None else min(self._search.batch, limit - len(self.trials))
        found: list[Proposal] = []
        repeats = 0
        while len(found) < room:
            left = self._left() if repeats >= _MOST_REPEATS else None
            asked = self._sampler.ask(left) if repeats < _MOST_REPEATS or left is not None else None
            if asked is None:
                break
            values, handle = asked
            key = _key(values)
            if key in self._results:
                self._sampler.tell(handle, self._results[key])
                repeats += 1
            elif key in self._repeats:
                self._repeats[key].append(handle)
                repeats += 1
            else:
                self._repeats[key] = []
                found.append(Proposal(len(self.trials) + len(found) + 1, values, handle))
                repeats = 0
        return found

    def _left(self) -> dict[str, Value] | None:
        """Return a combination that was not proposed yet; None where none is left, or there are too many to list."""
        return next((point for point in self._rest if _key(point) not in {**self._results, **self._repeats}), None)

    def tell(self, proposals: Sequence[Proposal], trials: Sequence[Trial]) -> None:
        """Take the results of a batch, in its order."""
        for proposal, trial in zip(proposals, trials, strict=True):
            key = _key(proposal.values)
            self._results[key] = trial
            self.trials.append(trial)
            for handle in (proposal.handle, *self._repeats.pop(key, ())):
                self._sampler.tell(handle, trial)


def check_installed(search: Search) -> None:
    """Raise MachineError where the sampler needs a package that is not installed."""
    if search.sampler != "grid":
        _optuna()


def _key(values: Mapping[str, Value]) -> str:
    return repr(sorted(values.items()))


class _Grid:
    """Every combination, in an order that the seed draws."""

    def __init__(self, search: Search, defaults: Mapping[str, Value]) -> None:
        points = list(spaces.points(search.space, defaults))
        random.Random(search.seed).shuffle(points)
        self._points: Iterator[dict[str, Value]] = iter(points)

    def ask(self, point: Mapping[str, Value] | None = None) -> tuple[dict[str, Value], Any] | None:
        next_point = next(self._points, None)
        return (next_point, None) if next_point is not None else None

    def tell(self, handle: Any, trial: Trial) -> None:
        """Do nothing: the grid learns nothing from results."""


class _Optuna:
    """A sampler of Optuna, with a study in memory."""

    def __init__(self, search: Search, defaults: Mapping[str, Value]) -> None:
        optuna = _optuna()
        self._optuna, self._search, self._defaults = optuna, search, defaults
        seed = search.seed
        samplers = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, search.batch)),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        }
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = [objective.direction for objective in search.objectives]
        self._study = optuna.create_study(directions=directions, sampler=samplers[search.sampler]())

    def ask(self, point: Mapping[str, Value] | None = None) -> tuple[dict[str, Value], Any] | None:
        if point is not None:
            self._study.enqueue_trial(dict(point))
        trial = self._study.ask()
        values: dict[str, Value] = {}
        for one in self._search.space:
            if spaces.is_active(one, {**self._defaults, **values}):
                values[one.name] = _suggest(trial, one)
        return values, trial

    def tell(self, handle: Any, trial: Trial) -> None:
        """Give Optuna the result: without objectives as a trial that was pruned, with the violation as a constraint."""
        state = self._optuna.trial.TrialState
        objectives = trial.objectives(self._search)
        if trial.state == FAILED:
            self._study.tell(handle, state=state.FAIL)
            return
        handle.set_constraint("limits", trial.violation)
        if objectives is None:
            self._study.tell(handle, state=state.PRUNED)
        else:
            self._study.tell(handle, list(objectives))


def _suggest(trial: Any, one: Dimension) -> Value:
    if one.choices:
        chosen: Value = trial.suggest_categorical(one.name, list(one.choices))
        return chosen
    if one.is_integer:
        return int(trial.suggest_int(one.name, int(one.low), int(one.high), step=int(one.step or 1), log=one.log))
    return spaces.rounded(one, trial.suggest_float(one.name, one.low, one.high, step=one.step, log=one.log))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MachineError(
            "`search` needs the package `optuna`, which is not installed",
            "`pip install 'runner[search]'` installs it; the sampler `grid` needs none",
        ) from None
    return optuna
