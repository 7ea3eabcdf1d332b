from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands.conftest import Run


def other(run: Run, folder: Path, job: str) -> str:
    """A second job, with other points."""
    run("apply", "toy.yaml", "--set", "points=6", "--progress", "none")
    return next(path.name for path in (folder / "jobs").glob("toy-*") if path.name != job)


def test_two_jobs(run: Run, folder: Path, job: str) -> None:
    second = other(run, folder, job)
    code, out, err = run("diff", job, second, "--only", "recipe", "--only", "metrics", "--only", "digests")
    assert (code, err) == (0, "")
    assert (
        re.sub(r"\b[0-9a-f]{12}\b(?! →.* toy)", "DIGEST", out.partition("\n\n")[2])
        == """\
recipe
 params.points       5 → 6
 steps.after.points  5 → 6

metrics
 after.points  5  →  6  +1, +20 %

digests
 after  DIGEST → DIGEST
"""
    )


def test_a_job_and_itself(run: Run, job: str) -> None:
    assert run("diff", job, job, "--exit-code") == (0, f"{job} → {job}\nno difference\n", "")


@pytest.mark.nightly
def test_the_exit_code_of_git_is_asked_for(run: Run, folder: Path, job: str) -> None:
    second = other(run, folder, job)
    assert run("diff", job, second)[0] == 0
    assert run("diff", job, second, "--exit-code")[0] == 1


def test_json(run: Run, folder: Path, job: str) -> None:
    document = json.loads(run("diff", job, other(run, folder, job), "--json")[1])
    assert document["equal"] is False
    assert document["metrics"] == [{"path": "after.points", "a": 5, "b": 6, "change": 1, "ratio": 1.2}]
    assert [entry["path"] for entry in document["recipe"]] == ["params.points", "steps.after.points"]
    assert [entry["path"] for entry in document["digests"]] == ["after"]


def test_two_recipes(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text()
    (folder / "new.yaml").write_text(
        text.replace("  - toy.shrink", "  - toy.score: {points: 2}\n    id: between\n  - toy.shrink").replace(
            "value: 1.5", "value: 2"
        )
    )
    code, out, _ = run("diff", "toy.yaml", "new.yaml")
    assert code == 0
    assert (
        out
        == """\
toy.yaml → new.yaml

recipe
 steps                           before, shrink, after → before, between, shrink, after
 steps.after.gates.points.value  1.5 → 2
 steps.between.kind              none → toy.score
 steps.between.against           none → model
 steps.between.points            none → 2
 steps.between.scale             none → auto
 steps.between.gates             none → {}
"""
    )


def test_a_part_that_is_none(run: Run, job: str) -> None:
    assert run("diff", job, job, "--only", "size") == (
        2, "",
        "error: `--only size` names no part of a job\nhelp: it is one of recipe, lock, metrics, digests, environment\n",
    )  # fmt: skip


def test_what_is_not_there(run: Run, job: str) -> None:
    assert run("diff", job, "tay")[0] == 2


def test_secrets_are_not_shown(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text()
    for name, secret in (("a", "first-one"), ("b", "second-one")):
        (folder / f"{name}.yaml").write_text(text.replace("fail: false", f"fail: false, api_key: {secret}"))
    out = run("diff", "a.yaml", "b.yaml")[1]
    assert "params.api_key  ••• → •••" in out
    assert "-one" not in out
