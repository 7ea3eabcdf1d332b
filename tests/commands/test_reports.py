"""What apply leaves for others to read, and `runner report` makes anew."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from runner.report.html import page
from tests.commands.conftest import Run


def the_job(folder: Path) -> Path:
    return next((folder / "jobs").glob("toy-*"))


def test_apply_writes_the_report(run: Run, folder: Path) -> None:
    assert run("apply", "toy.yaml", "--progress", "none")[0] == 0
    document = json.loads((the_job(folder) / "report.json").read_text(encoding="utf-8"))
    assert document["verdict"]["text"] == "Its one gate passed. The weights are as large as before."
    assert document["steps"][1]["forecast"] == {"memory": 250_000_000, "seconds": 12.4}
    assert "<h1>toy</h1>" in (the_job(folder) / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("set", "code", "level"), [("points=9", 3, "gate missed"), ("fail=true", 1, "failed")])
def test_a_job_that_did_not_go_well_has_one_too(run: Run, folder: Path, set: str, code: int, level: str) -> None:
    assert run("apply", "toy.yaml", "--progress", "none", "--set", set)[0] == code
    document = json.loads((the_job(folder) / "report.json").read_text(encoding="utf-8"))
    assert (document["verdict"]["word"], document["exit_code"]) == (level, code)


def test_a_report_that_cannot_be_made_is_a_warning(
    run: Run, folder: Path, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: object) -> str:
        raise ZeroDivisionError("no\nway")

    monkeypatch.setattr(page, "html", broken)
    code, out, err = run("apply", "toy.yaml", "--progress", "none")
    assert code == 0
    assert err == f"warning: the report of {the_job(folder).name} could not be written: ZeroDivisionError: no\n"
    assert "output  jobs/toy-" in out


def test_junit(run: Run, folder: Path) -> None:
    assert run("apply", "toy.yaml", "--progress", "none", "--set", "points=9", "--junit", "out/junit.xml")[0] == 3
    root = ElementTree.parse(folder / "out" / "junit.xml").getroot()
    assert {c.attrib["name"]: [e.tag for e in c if e.tag != "system-out"] for c in root.iter("testcase")} == {
        "before (toy.score)": [], "shrink (toy.shrink)": [], "after (toy.score)": [],
        "after: points at most 1.5 × before": ["failure"],
    }  # fmt: skip


def test_junit_of_a_recipe_that_is_wrong(run: Run, folder: Path) -> None:
    (folder / "bad.yaml").write_text("version: 1\n")
    assert run("apply", "bad.yaml", "--junit", "junit.xml")[0] == 2
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert [(suite.attrib["name"], suite.attrib["errors"]) for suite in root] == [("bad.yaml", "1")]


@pytest.mark.nightly
def test_junit_of_several_recipes(run: Run, folder: Path) -> None:
    (folder / "bad.yaml").write_text("version: 1\n")
    assert run("apply", "bad.yaml", "toy.yaml", "--progress", "none", "--junit", "junit.xml")[0] == 2
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert [(suite.attrib["name"], suite.attrib["errors"]) for suite in root] == [("bad.yaml", "1"), ("toy", "0")]


def test_on_github_actions(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(folder))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
    code, out, _ = run("apply", "toy.yaml", "--progress", "plain", "--set", "points=9")
    assert code == 3
    assert [line for line in out.splitlines() if line.startswith("::")] == [
        "::group::before (toy.score)", "::endgroup::", "::group::shrink (toy.shrink)", "::endgroup::",
        "::group::after (toy.score)", "::endgroup::",
        ("::error file=toy.yaml,line=13,col=15,endColumn=21,title=after%3A gate missed::"
        "`points` is 9, 3 above its limit 6 (1.5 × `before` 4)"),
    ]  # fmt: skip
    assert (folder / "summary.md").read_text(encoding="utf-8").startswith("### ❌ toy: gate missed\n")


@pytest.mark.nightly
def test_on_github_actions_jsonl_keeps_stdout(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, out, err = run("apply", "toy.yaml", "--progress", "jsonl", "--set", "points=9")
    assert code == 3
    assert all(json.loads(line) for line in out.splitlines())
    assert err.startswith("::error file=toy.yaml,line=13,")


@pytest.mark.parametrize("command", ["apply", "plan", "validate"])
def test_on_github_actions_complaints_are_annotated(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (folder / "bad.yaml").write_text((folder / "toy.yaml").read_text().replace("points: 4", "points: four"))
    code, _, err = run(command, "bad.yaml")
    assert code == 2
    assert [line.partition("title=")[0] for line in err.splitlines() if line.startswith("::")] == [
        "::error file=bad.yaml,line=7,col=25,endColumn=29,"
    ]


def test_report_writes_the_files_anew(run: Run, job: str, folder: Path) -> None:
    for name in ("report.html", "report.json"):
        (folder / "jobs" / job / name).unlink(missing_ok=True)
    assert run("report", job, "--html") == (0, f"wrote jobs/{job}/report.html\n", "")
    document = json.loads((folder / "jobs" / job / "report.json").read_text(encoding="utf-8"))
    assert json.loads(run("report", job, "--json")[1]) == document


def test_report_writes_elsewhere(run: Run, job: str, folder: Path) -> None:
    code, out, _ = run("report", job, "--html", "page.html", "--junit", "junit.xml")
    assert (code, out) == (0, "wrote page.html\nwrote junit.xml\n")
    assert (folder / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>\n")


def test_report_cannot_write(run: Run, job: str) -> None:
    code, _, err = run("report", job, "--html", "nowhere/page.html")
    assert (code, err) == (
        1,
        (
            "error: nowhere/page.html cannot be written: No such file or directory\n"
            "help: make its folder writable, or name another file\n"
        ),
    )
