from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands.conftest import LOAD, Run, steady


def test_no_jobs(run: Run) -> None:
    assert run("jobs", "list") == (0, "no jobs in jobs\n", "")


def test_list(run: Run, job: str) -> None:
    code, out, _ = run("jobs")
    assert code == 0
    assert re.fullmatch(
        r"job +status +steps +size +started \(UTC\) +took\n"
        rf"{job} +done, accepted +3/3 +[\d.]+ MB +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d +\d\.\d s\n",
        out,
    )


def test_list_json(run: Run, job: str) -> None:
    (entry,) = json.loads(run("jobs", "list", "--json")[1])
    assert (entry["id"], entry["status"], entry["steps"], entry["done"]) == (job, "done", 3, 3)


@pytest.mark.parametrize("name", ["{job}", "toy-", "jobs/{job}", "./jobs/{job}/"])
def test_show_takes_an_id_its_beginning_or_a_folder(run: Run, job: str, name: str) -> None:
    code, out, _ = run("jobs", "show", name.format(job=job))
    assert code == 0
    assert steady(out).startswith("job       toy-ID\nrecipe    toy\nstatus    done\n")


def test_show_what_is_not_there(run: Run, job: str) -> None:
    assert run("jobs", "show", "tay") == (
        2, "", "error: there is no job `tay` in jobs\nhelp: `runner jobs list` shows them all\n"
    )  # fmt: skip


def test_show_needs_a_job(run: Run) -> None:
    assert run("jobs", "show") == (
        2, "", "error: `runner jobs show` needs a JOB\nhelp: `runner jobs list` shows them all\n"
    )  # fmt: skip


def test_remove_one_and_its_results(run: Run, job: str, folder: Path) -> None:
    code, out, _ = run("jobs", "rm", job)
    assert code == 0
    assert re.fullmatch(rf"removed {job}, [\d.]+ MB freed\n", out)
    assert run("jobs")[1] == "no jobs in jobs\n"
    assert [path for path in (folder / "jobs" / "store").iterdir() if len(path.name) == 64] == []


def test_remove_all_but_the_results(run: Run, job: str) -> None:
    run("apply", "toy.yaml", "--set", "points=6", "--progress", "none")
    code, out, _ = run("jobs", "rm", "--all", "--keep-store")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "nothing to run: all 3 steps are cached" in run("plan", "toy.yaml")[1]


@pytest.mark.parametrize("arguments", [(), ("toy", "--all")])
def test_remove_must_know_what(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("jobs", "rm", *arguments) == (
        2, "", "error: `runner jobs rm` needs either a JOB or --all\nhelp: `runner jobs list` shows them all\n"
    )  # fmt: skip


def test_report(run: Run, job: str) -> None:
    code, out, err = run("report", job)
    assert (code, err) == (0, "")
    text = re.sub(r"started \S+Z", "started THEN", steady(out))
    text = re.sub(r"SECS +[\d.]+ MB", "SECS NN MB", text)
    assert (
        re.sub(r"(?<=\S) +", " ", text)
        == f"""\
toy-ID done
model demo:tiny-llama, started THEN, took SECS, peak memory SIZE
folder jobs/toy-ID

    step kind state time memory size metrics
 ✓ before toy.score done SECS NN MB points 4
 ✓ shrink toy.shrink done SECS NN MB 11.5 MB error 0.0233
 ✓ after toy.score done SECS NN MB points 5
 shrink: error by layer ▃▅█ 0.01 to 0.04
 shrink: tensors: 56 changed (down, embedding, gate, k, norm, o, q, up, v; 11.5 MB), 1 tied (head)
 after: gate passed: `points` is 5, within its limit 6 (1.5 × `before` 4)

size 11.5 MB → 11.5 MB
output jobs/toy-ID/output
{re.sub(" +", " ", LOAD)}
"""
    )


def test_report_json(run: Run, job: str) -> None:
    document = json.loads(run("report", "toy-", "--json")[1])
    assert document["status"] == "done"
    assert document["size_before"] == 11_540_992
    shrink = document["steps"][1]
    assert shrink["errors"] == [0.01, 0.02, 0.04]
    assert shrink["metrics"] == {"error": 0.0233, "modules": 3}
    assert document["steps"][2]["gates"][0]["passed"] is True
