"""`search` of a recipe, on kinds that compute nothing: `apply` runs it, `plan` forecasts it, `search` shows it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runner.recipe import load
from tests.commands.conftest import KINDS, RECIPE, Run
from tests.execute.applying import until

ROOT = Path(__file__).parent.parent.parent
SEARCH = """\
search:
  space:
    points: {low: 1, high: 12}
  objectives:
    - {step: after, metric: points, direction: maximize}
  constraints:
    - {step: shrink, metric: bytes, max: 20000000}
  budget: {trials: 4}
  batch: 2
"""
ENDS = """\
search:
  space:
    points: [-1, 2, 8]
    fail: {choices: [false, true], when: points == 2}
  objectives:
    - {step: after, metric: points, direction: maximize}
    - {step: shrink, metric: bytes, direction: minimize}
  budget: {trials: 9}
  sampler: grid
"""
TOY = RECIPE.replace("steps:\n", f"{SEARCH}steps:\n", 1)
PLAIN = """\
 1
name: toy
description: A toy.
model: {source: 'demo:tiny-llama'}
steps:
  - toy.score: {points: 4}
    id: before
  - toy.shrink: {fail: false}
    id: shrink
  - toy.score:
      points: POINTS
      gates:
        points: {max_ratio_to: before, value: 1.5}
    id: after
"""
WEIGHTS = 11_547_040.0  # bytes, of the model that the toy copies


def found(folder: Path, jobs: str = "jobs") -> dict[str, Any]:
    (path,) = (folder / jobs / "searches").glob("*/search.json")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def trials(folder: Path, jobs: str = "jobs") -> list[tuple[Any, ...]]:
    """Number, values, verdict and measures of every trial."""
    return [(t["number"], t["values"], t["state"], t["measured"], t["job"]) for t in found(folder, jobs)["trials"]]


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the search was run without interruption, one step at a time, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "toy.yaml").write_text(TOY, encoding="utf-8")
    done = command(folder, "apply", "toy.yaml", "--progress", "none").communicate()[0]
    return folder, done


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RUNNER_STEPS_PATH": str(KINDS), "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_every_trial_is_a_job_and_the_best_keeps_its_gate(applied: tuple[Path, str]) -> None:
    folder, out = applied
    state = found(folder)
    assert (state["status"], len(state["trials"])) == ("done", 4)
    for trial in state["trials"]:
        points = trial["values"]["points"]
        assert trial["state"] == ("met" if points <= 6 else "missed")
        assert trial["measured"] == [points, WEIGHTS, WEIGHTS][: len(trial["measured"])] == [points, WEIGHTS]
        assert (folder / "jobs" / trial["job"] / "plan.json").is_file()
    best = max((t for t in state["trials"] if t["state"] == "met"), key=lambda t: t["values"]["points"])
    assert f"best: trial {best['number']} (points={best['values']['points']}" in out
    assert re.search(r"^search toy-[0-9a-f]{12}: 4 of 4 trials, done, ", out, re.MULTILINE)


def test_applied_again_it_runs_nothing(applied: tuple[Path, str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = applied
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "jobs").glob("toy-*/job.json")}
    wanted = trials(folder)
    code, again, _ = run("apply", "toy.yaml", "--progress", "none")
    assert (code, trials(folder)) == (0, wanted)
    assert again == out[out.index("\nsearch toy-") :]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.nightly)])
def test_killed_it_gives_the_trials_and_the_winner_of_one_that_was_not(
    applied: tuple[Path, str], run: Run, folder: Path, kills: int
) -> None:
    """Also where what is left runs several steps at once."""
    (folder / "toy.yaml").write_text(TOY)
    for kill in range(kills):
        process = command(folder, "apply", "toy.yaml", "--progress", "none")
        until(lambda done=kill // 2: len(list((folder / "jobs").glob("toy-*/provenance.json"))) > done)  # type: ignore[misc]
        time.sleep(0.4 * (kill % 3))
        process.kill()
        process.communicate()
    code, out, _ = run("apply", "toy.yaml", "--progress", "none", "--jobs-at-once", "3")
    assert code == 0
    assert trials(folder) == trials(applied[0])
    best = re.search(r"^best: .*", out, re.MULTILINE)
    assert best is not None
    assert best[0] in applied[1]


@pytest.mark.nightly
def test_a_signal_stops_it_with_the_command_to_continue(folder: Path) -> None:
    (folder / "toy.yaml").write_text(TOY)
    process = command(folder, "apply", "toy.yaml", "--progress", "none")
    until(lambda: len(list((folder / "jobs").glob("toy-*/plan.json"))) > 0)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, err) == (75, "")
    assert out.endswith("continue with:\n  runner apply toy.yaml --progress none\n")
    assert found(folder)["status"] == "interrupted"


def test_trials_end_in_four_ways(run: Run, folder: Path) -> None:
    """And what `search` says of them, on the terminal and as a page."""
    (folder / "toy.yaml").write_text(RECIPE.replace("steps:\n", f"{ENDS}steps:\n", 1))
    code, out, _ = run("apply", "toy.yaml", "--progress", "none")
    assert code == 0
    state = found(folder)
    ends = {
        (t["values"]["points"], t["values"].get("fail")): (t["state"], t["reason"], t["measured"])
        for t in state["trials"]
    }
    assert ends == {
        (-1, None): (
            "refused", "`points` must be a number of at least 0; got -1 (from `${points}`)", [None, None],
        ),
        (2, True): ("failed", "shrink: tensor `a` of model.safetensors holds 3 NaN values", [None, None]),
        (8, None): ("missed", "after: `points` is 8, 2 above its limit 6 (1.5 × `before` 4)", [8, WEIGHTS]),
        (2, False): ("met", "", [2, WEIGHTS]),
    }  # fmt: skip
    assert (
        "1 kept every limit, 1 missed one, 1 were refused, 1 failed\nPareto front of after.points and shrink.bytes: "
        in out
    )
    code, out, _ = run("search", "show", "toy")
    assert code == 0
    assert re.search(r"^   trial +points +fail +after\.points +bytes +verdict$", out, re.MULTILINE)
    assert out.count("●") == 1
    assert re.search(r"^trial \d was refused: `points` must be a number of at least 0; got -1", out, re.MULTILINE)
    document = json.loads(run("search", "show", "--json")[1])
    assert document["front"] == [document["winner"]]
    assert run("search", "show", "--html", "page.html")[1] == "wrote page.html\n"
    page = (folder / "page.html").read_text()
    assert page.count("<circle") == 2 * 3  # two trials that were measured, and the ring of the best; wide and narrow
    assert f"best: trial {document['winner']}" in page
    assert "<script" not in page
    failed = next(t["number"] for t in state["trials"] if t["state"] == "refused")
    assert run("search", "best", "--trial", str(failed))[::2] == (2, (
        f"error: trial {failed} of `{state['id']}` has no job: `points` must be a number of at least 0; "
        "got -1 (from `${points}`)\nhelp: choose another\n"
    ))  # fmt: skip


def test_where_nothing_keeps_the_limits_the_nearest_is_named(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(TOY.replace("{low: 1, high: 12}", "[8, 9]"))
    code, out, _ = run("apply", "toy.yaml", "--progress", "none")
    assert code == 3
    assert "2 missed one\nno trial kept every limit; nearest is trial " in out
    assert "(points=8): after: `points` is 8, 2 above its limit 6 (1.5 × `before` 4)\n" in out
    id = found(folder)["id"]
    assert run("search", "best")[::2] == (2, (
        f"error: no trial of `{id}` kept every limit\n"
        f"help: `runner search show {id}` shows what each missed; `--trial N` takes one all the same\n"
    ))  # fmt: skip


def test_where_every_trial_is_refused_the_recipe_is_wrong(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(TOY.replace("{low: 1, high: 12}", "[-1, -2]"))
    assert run("apply", "toy.yaml", "--progress", "none")[0] == 2


def test_the_best_is_a_plain_recipe_that_gives_its_job(applied: tuple[Path, str], run: Run, folder: Path) -> None:
    jobs = str(applied[0] / "jobs")
    code, out, _ = run("search", "best", "--as", "best.yaml", "--jobs", jobs)
    assert (code, out) == (0, "wrote best.yaml\nwrote best.lock\n")
    state = found(applied[0])
    _, shown, _ = run("search", "best", "--json", "--jobs", jobs)
    best = json.loads(shown)
    for name in ("best.yaml", "best.lock"):
        assert (
            f"# Trial {best['number']}, the best of 4 of the search {state['id']}; job {best['job']}.\n"
            f"# Chosen: points={best['values']['points']}.\n"
        ) in (folder / name).read_text()
    recipe = load.load("best.yaml")
    assert (recipe.search, dict(recipe.params), recipe.warnings) == (None, {}, ())
    said = (folder / "best.yaml").read_text().partition("version:")[2]
    assert said == PLAIN.replace("POINTS", str(best["values"]["points"]))
    code, out, _ = run("apply", "best.yaml", "--locked", "--progress", "none", "--jobs", jobs)
    assert code == 0
    assert "all 3 steps are cached" in out
    assert f"output  {jobs}/{best['job']}/output" in out


def test_the_best_is_that_of_the_search_where_its_recipe_changed(
    applied: tuple[Path, str], run: Run, folder: Path
) -> None:
    jobs = str(applied[0] / "jobs")
    (folder / "toy.yaml").write_text(TOY.replace("points: 4", "points: 3"))
    assert run("search", "best", "--as", "best.yaml", "--jobs", jobs)[0] == 0
    assert "description: A toy." in (folder / "best.yaml").read_text()
    assert "points: 3" not in (folder / "best.yaml").read_text()
    code, out, _ = run("apply", "best.yaml", "--locked", "--progress", "none", "--jobs", jobs)
    assert code == 0
    assert "all 3 steps are cached" in out


def test_plan_says_what_a_search_would_do(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(TOY)
    code, out, _ = run("plan", "toy.yaml")
    assert code == 0
    assert out == (
        "toy: search of at most 4 trials (of 12 combinations), chosen by `tpe` in batches of 2\n"
        " points  1 to 12\n"
        "maximize after.points, with shrink.bytes at most 20.0 MB\n"
        "shared by every trial: `before` and `shrink`\n"
        "a trial computes < 1 s at most, peak memory 250 MB; all of them ~15 s at most\n\n"
    )
    document = json.loads(run("plan", "toy.yaml", "--json")[1])
    assert (document["combinations"], document["shared"]) == (12, ["before", "shrink"])
    assert not (folder / "jobs" / "searches").exists()


def test_one_job_is_no_search(run: Run, folder: Path) -> None:
    import runner
    from runner.errors import UsageError

    (folder / "toy.yaml").write_text(TOY)
    with pytest.raises(UsageError) as caught:
        runner.apply(runner.plan(runner.load("toy.yaml")))
    assert caught.value.render() == (
        "error: toy.yaml has a `search`, and a plan is of one job\nhelp: `runner apply toy.yaml` runs the search"
    )
    assert run("search", "show")[::2] == (2, (
        "error: there is no search in jobs\n"
        "help: `runner apply RECIPE` runs the search of a recipe\n"
    ))  # fmt: skip
