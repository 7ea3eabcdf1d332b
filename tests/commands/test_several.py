"""Several jobs in one apply: a matrix, a folder, a summary, the worst exit code, and what the next run does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.commands import several
from tests.commands.conftest import KINDS, RECIPE, Run
from tests.execute.applying import KINDS as FAKES
from tests.execute.applying import until

ROOT = Path(__file__).parent.parent.parent
MATRIX = RECIPE.replace("params: {", "matrix: {points: [3, 4, 5], more: [1, 2]}\nparams: {more: 1, ").replace(
    "    id: after\n", '    id: after\n  - toy.score: {points: "${more}"}\n    id: more\n'
)
LAYERS = """\
version: 1
name: slow
params: {control: control.json}
model: {source: demo:tiny-llama}
steps:
  - fake.layers: {layers: 3}
    id: first
  - fake.layers: {layers: 4, control: "${control}"}
    id: second
"""


@pytest.fixture(autouse=True)
def _kinds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys, and fakes that can be told to wait or to die; those have no schema that a recipe could be held to."""
    shutil.copytree(FAKES, folder / "fakes")
    rules = {"type": "object", "additionalProperties": False, "properties": {"layers": {}, "control": {}}}
    (folder / "fakes" / "fake.layers.schema.json").write_text(json.dumps(rules))
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("RUNNER_STEPS_PATH", os.pathsep.join([str(KINDS), str(folder / "fakes")]))


def summary(out: str) -> list[list[str]]:
    """The rows of the last table."""
    lines = out.splitlines()
    start = max(i for i, line in enumerate(lines) if line.startswith(" recipe "))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith(" "):
            break
        rows.append([cell for cell in re.split(r"  +", line.strip()) if not re.fullmatch(r"[\d.]+ s", cell)])
    return rows


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def ran(out: str) -> list[str]:
    return [event["id"] for event in events(out) if event["event"] == "step_finished"]


@pytest.mark.nightly
def test_a_matrix_of_six_jobs_runs_the_shared_prefix_once(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(MATRIX)
    code, out, err = run("apply", "toy.yaml", "--progress", "jsonl")
    assert (code, err) == (0, "")
    # `before` and `shrink` are the prefix of all six; `after` differs by `points`, `more` by `more`.
    assert sorted(ran(out)) == ["after"] * 3 + ["before", "more", "more", "shrink"]
    jobs = events(out)[-1]["jobs"]
    assert [(job["run"], job["cached"]) for job in jobs] == [(4, 0), (1, 3), (1, 3), (0, 4), (1, 3), (0, 4)]
    assert len({job["job"] for job in jobs}) == 6
    assert [job["name"] for job in jobs[:2]] == ["toy (more=1, points=3)", "toy (more=2, points=3)"]

    listed = run("jobs")[1].splitlines()
    assert len(listed) == 7
    assert listed[0].split()[-1] == "combination"
    assert listed[1].endswith("more=1, points=3")
    assert run("apply", "toy.yaml", "--set", "points=4", "--set", "more=2", "--progress", "none")[0] == 0
    documents = json.loads(run("jobs", "list", "--json")[1])
    assert {(d["matrix"]["points"], d["matrix"]["more"]) for d in documents} == {
        (points, more) for points in (3, 4, 5) for more in (1, 2)
    }
    assert all(document["accepted"] for document in documents)


def test_the_plan_of_a_matrix_says_what_is_shared(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(MATRIX)
    code, out, _ = run("plan", "toy.yaml")
    assert code == 0
    assert "\n2/6 toy (more=2, points=3)\n" in out
    assert out.endswith(
        "6 jobs, 24 steps: 7 to run, 17 cached or shared\n"
        "`before` is shared by all 6\n"
        "`shrink` is shared by all 6\n"
        "`after` is shared by toy (more=1, points=3), toy (more=2, points=3)\n"
        "`more` is shared by toy (more=1, points=3), toy (more=1, points=4), toy (more=1, points=5)\n"
        "`more` is shared by toy (more=2, points=3), toy (more=2, points=4), toy (more=2, points=5)\n"
        "`after` is shared by toy (more=1, points=4), toy (more=2, points=4)\n"
        "`after` is shared by toy (more=1, points=5), toy (more=2, points=5)\n"
    )
    document = json.loads(run("plan", "toy.yaml", "--json")[1])
    assert [job["name"] for job in document["jobs"]][:1] == ["toy (more=1, points=3)"]
    assert document["jobs"][1]["steps"][0]["reason"] == "made by toy (more=1, points=3)"
    assert len(document["shared"]) == 7


def test_validate_counts_the_jobs_of_a_matrix(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(MATRIX)
    assert run("validate", ".") == (0, "toy.yaml: ok, 6 jobs of 4 steps\n", "")


@pytest.mark.nightly
def test_a_matrix_stops_at_a_failure_unless_told_to_go_on(run: Run, folder: Path) -> None:
    (folder / "toy.yaml").write_text(MATRIX.replace("[3, 4, 5]", "[9, 4]").replace("[1, 2]", "[1]"))
    code, out, _ = run("apply", "toy.yaml", "--progress", "none")
    assert code == 3
    assert summary(out) == [
        [
            "toy (more=1, points=9)",
            "gate missed",
            "3",
            "0",
            "after: gate missed: `points` is 9, 3 above its limit 6 (1.5 × `before` 4)",
        ],
        ["toy (more=1, points=4)", "not started"],
    ]
    code, out, _ = run("apply", "toy.yaml", "--progress", "none", "--keep-going")
    assert code == 3
    assert [row[1] for row in summary(out)] == ["gate missed", "done"]


def nightly(folder: Path) -> Path:
    """A folder of recipes: one is done, one misses its gate, one is wrong, one can be killed."""
    recipes = folder / "nightly"
    recipes.mkdir()
    (recipes / "a_good.yaml").write_text(RECIPE.replace("name: toy", "name: good"))
    (recipes / "b_gate.yaml").write_text(
        RECIPE.replace("name: toy", "name: gate").replace("points: 5", "points: 9").replace("points: 4", "points: 3")
    )
    (recipes / "c_wrong.yaml").write_text(RECIPE.replace("points: 4", "pionts: 4"))
    (recipes / "d_slow.yaml").write_text(LAYERS)
    (recipes / "notes.txt").write_text("not a recipe")
    return recipes


def test_a_nightly_run_ends_with_one_summary_and_the_next_resumes_what_is_unfinished(run: Run, folder: Path) -> None:
    nightly(folder)
    (folder / "control.json").write_text(json.dumps({"layer": 2, "do": "kill"}))
    code, out, err = run("apply", "nightly", "--progress", "none", "--junit", "junit.xml")
    assert code == 4, "a killed worker says more than a wrong recipe and a missed gate"
    assert "c_wrong.yaml:7:17: error[R205]: " in err
    rows = summary(out)
    assert [row[:4] for row in rows] == [
        ["good", "done", "3", "0"],
        ["gate", "gate missed", "2", "1"],
        ["nightly/c_wrong.yaml", "recipe wrong", "0", "0"],
        ["slow", "machine cannot", "1", "0"],
    ]
    assert rows[1][4] == "after: gate missed: `points` is 9, 4.5 above its limit 4.5 (1.5 × `before` 3)"
    assert rows[2][4] == "nightly/c_wrong.yaml:7: unknown key `pionts` of `toy.score`; did you mean `points`?"
    assert rows[3][4].startswith("second: the worker process was killed (SIGKILL), probably because memory ran out")
    assert "\n1 of 4 jobs done in " in out
    assert len([line for line in out.splitlines() if line.startswith(" recipe ")]) == 1
    import xml.etree.ElementTree as Tree

    assert len(Tree.parse(folder / "junit.xml").getroot().findall(".//testsuite")) == 4
    assert sorted(path.name for path in (folder / "jobs" / "accepted").iterdir()) == ["good.json"]

    (folder / "control.json").unlink()
    (folder / "nightly" / "c_wrong.yaml").unlink()
    code, out, err = run("apply", "nightly", "--progress", "jsonl")
    assert (code, err) == (3, "")
    found = events(out)
    assert ran(out) == ["second"]
    assert [event["resumed_at"] for event in found if event["event"] == "step_started"] == [2]
    assert [(job["run"], job["cached"], job["verdict"]) for job in found[-1]["jobs"]] == [
        (0, 3, "done"), (0, 3, "gate missed"), (1, 1, "done"),
    ]  # fmt: skip
    assert found[-1]["exit_code"] == 3


@pytest.mark.nightly
def test_a_run_that_is_killed_as_a_whole_goes_on(run: Run, folder: Path) -> None:
    nightly(folder)
    (folder / "nightly" / "c_wrong.yaml").unlink()
    (folder / "control.json").write_text(json.dumps({"layer": 2, "do": "wait"}))
    process = start(folder, "apply", "nightly", "--progress", "none")
    until((folder / "control.reached").exists)
    process.kill()
    process.communicate()
    (folder / "control.json").unlink()
    code, out, _ = run("apply", "nightly", "--progress", "jsonl")
    assert (code, ran(out)) == (3, ["second"])


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.nightly
def test_a_signal_ends_the_run_after_the_job_that_it_stops(folder: Path) -> None:
    recipes = nightly(folder)
    (recipes / "c_wrong.yaml").unlink()
    (recipes / "e_last.yaml").write_text(RECIPE.replace("name: toy", "name: last"))
    (folder / "control.json").write_text(json.dumps({"layer": 2, "do": "wait"}))
    process = start(folder, "apply", "nightly", "--progress", "none")
    until((folder / "control.reached").exists)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, err) == (3, "")
    assert [row[:2] for row in summary(out)] == [
        ["good", "done"], ["gate", "gate missed"], ["slow", "interrupted"], ["last", "not started"],
    ]  # fmt: skip
    assert out.endswith("finished steps are in the store; continue with:\n  runner apply nightly --progress none\n")


@pytest.mark.nightly
def test_a_time_limit_stops_each_job_and_not_the_run(run: Run, folder: Path) -> None:
    (folder / "slow.yaml").write_text(LAYERS)
    (folder / "other.yaml").write_text(LAYERS.replace("name: slow", "name: other").replace("id: second", "id: third"))
    (folder / "control.json").write_text(json.dumps({"layer": 2, "do": "wait"}))
    code, out, err = run("apply", "slow.yaml", "other.yaml", "--timeout", "3s", "--progress", "jsonl")
    assert (code, err) == (75, "")
    found = events(out)
    warnings = [event["text"] for event in found if event["event"] == "message" and event["level"] == "warning"]
    assert warnings == ["the time limit is over: stopped at a safe point"] * 2
    assert [(job["verdict"], job["text"]) for job in found[-1]["jobs"]] == [
        ("timed out", "stopped at a safe point")
    ] * 2
    (folder / "control.json").unlink()
    code, out, _ = run("apply", "slow.yaml", "other.yaml", "--timeout", "1h", "--progress", "jsonl")
    assert code == 0
    assert {"second", "third"} <= set(ran(out))


def test_a_system_without_timers_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "setitimer")
    assert run("apply", "toy.yaml", "--timeout", "1h") == (
        4, "", "error: this system has no timer that could stop a job\nhelp: leave out `--timeout`\n"
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "5", "1w", "-3s", "0s", "m"])
def test_a_time_limit_has_a_unit(run: Run, text: str) -> None:
    code, _, err = run("apply", "toy.yaml", f"--timeout={text}")
    assert code == 2
    assert f"argument --timeout: must be a time such as 90s, 30m, 2h, 1h30m or 7d; got {text!r}\n" in err


def test_a_folder_without_recipes(run: Run, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert run("apply", "empty") == (
        2, "", "error: there is no recipe in the folder empty\nhelp: recipes end in .yaml or .yml\n"
    )  # fmt: skip


def test_an_unforeseen_error_costs_the_other_recipes_nothing(run: Run, folder: Path, monkeypatch: Any) -> None:
    from runner.execute import application

    real, calls = application.apply, []

    def broken(*args: Any, **options: Any) -> int:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("torn")
        return real(*args, **options)

    monkeypatch.setattr(application, "apply", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "other.yaml").write_text(RECIPE.replace("name: toy", "name: other"))
    code, out, err = run("apply", "toy.yaml", "other.yaml", "--progress", "none")
    assert code == 1
    assert [row[:2] for row in summary(out)] == [["toy", "failed"], ["other", "done"]]
    assert err.startswith("error: runner met an error it did not expect: KeyError: 'torn'\n")


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0), ([0, 0], 0), ([0, 75], 75), ([75, 3], 3), ([3, 2, 75], 2), ([2, 4, 3], 4), ([4, 1, 2], 1),
        ([1, 130], 130), ([0, 9], 1),
    ],
)  # fmt: skip
def test_the_worst_exit_code(codes: list[int], worst: int) -> None:
    assert several.worst(codes) == worst


def test_offline_reaches_steps_and_refuses_what_is_not_cached(folder: Path) -> None:
    (folder / "hub.yaml").write_text(RECIPE.replace("demo:tiny-llama", "nobody/nothing"))
    environment = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
    done = subprocess.run(
        [sys.executable, "-m", "runner", "apply", "hub.yaml", "--offline"], cwd=folder, text=True, capture_output=True,
        env={**environment, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "hub.yaml:5:17: error[R431]: the model `nobody/nothing` is not in the local cache, "
        "and --offline forbids the network\n"
        "    5 | model: {source: nobody/nothing}\n"
        "      |                 ^^^^^^^^^^^^^^\n"
        "help: leave out --offline, or download it elsewhere and name its folder\n"
    )
