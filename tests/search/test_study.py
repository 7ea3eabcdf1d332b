"""Which trials a study proposes: within the space, never twice, the same for the same seed, better with results."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest

from runner.errors import MachineError
from runner.recipe.search_types import Dimension, Search
from runner.search import front
from runner.search.study import Study
from tests.search.spaces import DEFAULTS, result, run, search

SAMPLERS = ("tpe", "nsga2", "random")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_are_in_the_space_and_differ(sampler: str) -> None:
    trials = run(search(sampler)).trials
    assert [trial.number for trial in trials] == list(range(1, 25))
    assert len({repr(sorted(trial.values.items())) for trial in trials}) == 24
    for trial in trials:
        assert set(trial.values) == (
            {"method", "bits", "damp"} if trial.values["method"] == "gptq" else {"method", "bits"}
        )
        assert trial.values["bits"] in range(2, 9)
        assert 0.001 <= float(trial.values.get("damp", 0.01)) <= 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_the_same_trials_in_another_process_and_others_differ(sampler: str) -> None:
    trials = [dict(trial.values) for trial in run(search(sampler)).trials]
    code = (
        f"from tests.search.spaces import run, search\nprint([dict(t.values) for t in run(search({sampler!r})).trials])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(trials)
    assert [dict(trial.values) for trial in run(search(sampler, seed=1)).trials] != trials


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_a_study_that_is_rebuilt_goes_on_with_the_same_trials(sampler: str) -> None:
    """A search that was killed asks anew, and tells the results that are on the disk."""
    found = search(sampler, trials=14)
    if sampler == "grid":
        found = grid(14)
    entire = run(found)
    for batches in range(4):
        begun = run(found, batches)
        known = {repr(trial.values): trial for trial in begun.trials}
        again = Study(found, DEFAULTS)
        while proposals := again.batch():
            again.tell(proposals, [
                known.get(repr(dict(one.values))) or result(found, one.number, one.values) for one in proposals
            ])  # fmt: skip
        assert again.trials == entire.trials
        assert front.winner(found, again.trials) == front.winner(found, entire.trials)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_larger_budget_begins_with_the_same_trials(sampler: str) -> None:
    few, many = run(search(sampler, trials=8)).trials, run(search(sampler, trials=16)).trials
    assert many[:8] == few


def test_tpe_learns_from_results() -> None:
    """Against random trials of as many seeds: the best of 24 is better on average."""
    seeds = range(3)
    best = {name: [_best(name, seed) for seed in seeds] for name in ("tpe", "random")}
    assert statistics.mean(best["tpe"]) < statistics.mean(best["random"])


def _best(sampler: str, seed: int) -> float:
    found = search(sampler, two=False, seed=seed)
    winner = front.winner(found, run(found).trials)
    assert winner is not None
    return float(winner.measured[0] or 0)


def grid(trials: int | None) -> Search:
    found = search("grid", trials=trials)
    return replace(found, space=(*found.space[:2], Dimension("damp", (0.01, 0.1), when='method == "gptq"')))


def test_a_grid_has_every_combination_once() -> None:
    trials = run(grid(None)).trials
    wanted = [{"method": "rtn", "bits": bits} for bits in range(2, 9)]
    wanted += [{"method": "gptq", "bits": b, "damp": d} for b, d in itertools.product(range(2, 9), (0.01, 0.1))]
    assert sorted(map(repr, (dict(trial.values) for trial in trials))) == sorted(map(repr, wanted))


def test_a_space_that_is_spent_ends_the_search() -> None:
    found = replace(search("tpe", trials=None), space=search().space[:2])
    assert len(run(found).trials) == 14


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MachineError) as caught:
        Study(search(), DEFAULTS)
    assert caught.value.render() == (
        "error: `search` needs the package `optuna`, which is not installed\n"
        "help: `pip install 'runner[search]'` installs it; the sampler `grid` needs none"
    )
    assert len(run(grid(4)).trials) == 4
