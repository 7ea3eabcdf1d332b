"""`runner.search`: the search that `runner apply` runs, from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runner
from runner.progress.events import Event
from tests.commands.conftest import RECIPE

SEARCH = """\
search:
  space:
    points: [-1, 2, 6, 8]
  objectives:
    - {step: after, metric: points, direction: maximize}
  budget: {trials: 9}
  sampler: grid
  batch: 2
"""


@pytest.fixture(autouse=True)
def toy(folder: Path) -> Path:
    """toy.yaml with a search."""
    (folder / "toy.yaml").write_text(RECIPE.replace("steps:\n", f"{SEARCH}steps:\n", 1), encoding="utf-8")
    return folder


def test_a_search_returns_its_trials_and_the_best(toy: Path) -> None:
    seen: list[Event] = []
    found = runner.search("toy.yaml", on_event=seen.append, threads=1)
    assert sorted((trial.values["points"], trial.state) for trial in found.trials) == [
        (-1, "refused"), (2, "met"), (6, "met"), (8, "missed")
    ]  # fmt: skip
    best = found.best
    assert best is not None
    assert (best.values, best.measured) == ({"points": 6}, (6.0,))
    assert found.front == (best,)
    assert found.job().metrics["after"] == {"points": 6.0}
    assert {event["job"] for event in seen} == {trial.job for trial in found.trials if trial.job}
    assert repr(found) == f"<runner.Search {found.id}: done, 4 trials>"
    recipe, lock = found.write_best("best.yaml")
    assert lock == Path("best.lock")
    assert set(runner.plan(runner.load(recipe, locked=True), locked=True).states.values()) == {"cached"}
    again = runner.search("toy.yaml", on_event=lambda event: pytest.fail(str(event)))
    assert again.trials == found.trials
    written = json.loads((toy / "jobs" / "searches" / found.id / "search.json").read_text())
    assert written["status"] == "done"


@pytest.mark.nightly
def test_params_may_be_set_and_no_trial_may_win() -> None:
    found = runner.search("toy.yaml", sets={"fail": True})
    assert {trial.state for trial in found.trials} == {"failed", "refused"}
    assert found.best is None
    with pytest.raises(runner.UsageError, match=r"no trial of `toy-.*` kept every limit"):
        found.job()


def test_a_recipe_without_a_search_is_refused(toy: Path) -> None:
    (toy / "plain.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(runner.UsageError, match=r"^plain\.yaml has no `search`$"):
        runner.search("plain.yaml")


@pytest.mark.nightly
def test_an_exception_of_the_caller_ends_the_search_and_it_goes_on_later() -> None:
    def stop(event: Event) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match=r"^stop$"):
        runner.search("toy.yaml", on_event=stop)
    assert runner.search("toy.yaml").best is not None
