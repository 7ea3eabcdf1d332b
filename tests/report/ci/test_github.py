from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import Diagnostic, RecipeError, Span, UsageError
from runner.progress.events import Event
from runner.progress.plain import Plain
from runner.recipe import load
from runner.report import job_report
from runner.report.ci import github
from tests.progress.recorded import at
from tests.report.jobs import gate, made

RECIPE = """\
version: 1
name: demo
params: {token: hunter22}
model: {source: demo:tiny-llama}
data:
  evaluation: {source: demo:stdlib, split: evaluation, sequence_length: 512}
steps:
  - prune.magnitude: {sparsity: 0.5}
    id: prune
  - evaluate.perplexity:
      data: evaluation
      gates: {perplexity: {max: 9}}
    id: quality
"""


@pytest.fixture(autouse=True)
def _actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def sent(tmp_path: Path, *events: Event, grouped: bool = False) -> list[str]:
    stream = io.StringIO()
    recipe = load.loads(RECIPE, str(tmp_path / "recipes" / "demo.yaml"))
    sink = github.Annotations(Plain(stream) if grouped else None, stream, recipe, grouped=grouped)
    for event in events:
        sink.send(event)
    sink.close()
    return stream.getvalue().splitlines()


def test_a_missed_gate_is_placed_at_its_rule(tmp_path: Path) -> None:
    assert sent(tmp_path, gate(1, "quality", 11.0, 9.0), gate(1, "quality", 1.0, 9.0)) == [
        (
            "::error file=recipes/demo.yaml,line=12,col=15,endColumn=25,title=quality%3A gate missed::"
            "`perplexity` is 11, 2 above its limit 9"
        )
    ]


def test_a_failed_step_is_placed_at_its_kind(tmp_path: Path) -> None:
    failed = at(
        3, "step_failed", step=0, id="prune", kind="prune.magnitude", error="100% wrong\nhunter22", help="do it"
    )
    assert sent(tmp_path, failed) == [
        "::error file=recipes/demo.yaml,line=8,col=5,endColumn=20,title=prune failed::100%25 wrong%0A•••%0Ahelp: do it"
    ]


def test_warnings(tmp_path: Path) -> None:
    assert sent(
        tmp_path,
        at(1, "message", step=None, level="warning", text="a, b: c"),
        at(2, "message", step=None, level="info", text="quiet"),
    ) == ["::warning title=runner::a, b: c"]


def test_the_log_is_grouped_by_step(tmp_path: Path) -> None:
    steps = [{"index": 0, "id": "prune", "kind": "prune.magnitude", "state": "run"}]
    fields = {"step": 0, "id": "prune", "kind": "prune.magnitude", "key": "k"}
    lines = sent(
        tmp_path,
        at(0, "job_started", job="demo-1", directory="d", steps=steps),
        at(1, "step_started", **fields, resumed_at=None, layers=None),
        at(2, "step_finished", **fields, digest="d", seconds=1.0, memory=None, metrics={}),
        at(3, "job_finished", job="demo-1", directory="d", exit_code=0, seconds=3.0, memory=0, output=None),
        grouped=True,
    )
    assert lines == [
        "[ 0:00] demo-1: 1 step in d", "::group::prune (prune.magnitude)", "[ 0:01] 1/1 prune: prune.magnitude started",
        "[ 0:02] 1/1 prune: finished in 1.0 s", "::endgroup::", "[ 0:03] done after 3.0 s",
    ]  # fmt: skip


def test_a_group_ends_before_the_annotation_and_when_the_job_ends(tmp_path: Path) -> None:
    fields = {"step": 0, "id": "prune", "kind": "prune.magnitude"}
    started = at(1, "step_started", **fields, key="k", resumed_at=None, layers=None)
    lines = sent(tmp_path, started, at(2, "step_failed", **fields, error="no", help=None), grouped=True)
    assert [line[:11] for line in lines] == ["::group::pr", "[ 0:00] 1/1", "[ 0:01] 1/1", "::endgroup:", "::error fil"]
    assert sent(tmp_path, started, grouped=True)[-1] == "::endgroup::"


def test_a_reader_that_went_away_silences_it(tmp_path: Path) -> None:
    stream = io.StringIO()
    sink = github.Annotations(None, stream, load.loads(RECIPE, "demo.yaml"), grouped=True)
    stream.close()
    sink.send(gate(1, "quality", 11.0, 9.0))
    sink.close()


def test_complaints_about_a_recipe(tmp_path: Path) -> None:
    span = Span(str(tmp_path / "a,b.yaml"), 3, 7, 4, "text")
    error = RecipeError([Diagnostic("R203", "`bits` is 5", "see: there", span), Diagnostic("R500", "no place")])
    stream = io.StringIO()
    github.complain(error, stream)
    assert stream.getvalue().splitlines() == [
        "::error file=a%2Cb.yaml,line=3,col=7,endColumn=11,title=R203::`bits` is 5%0Asee: there",
        "::error title=R500::no place",
    ]


def test_errors_without_a_place() -> None:
    stream = io.StringIO()
    github.complain(UsageError("no such job", "list them"), stream)
    assert stream.getvalue() == "::error title=runner::no such job%0Alist them\n"


def test_elsewhere_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")
    stream = io.StringIO()
    github.complain(UsageError("no such job"), stream)
    assert stream.getvalue() == ""


def test_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "summary.md"
    place.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    plan = made(tmp_path / "jobs", "gate-missed", events=[gate(4, "quality", 11.0, 10.5)])
    github.summarize(job_report.read(tmp_path / "jobs", plan.job_id))
    assert (
        place.read_text(encoding="utf-8")
        == f"""\
before
### ❌ demo: gate missed

Step quality: `perplexity` is 11, 0.5 above its limit 10.5. Everything is kept.

- ❌ quality: `perplexity` is 11, 0.5 above its limit 10.5

| step | kind | state | time | memory | size | metrics |
|---|---|---|--:|--:|--:|---|
| baseline | evaluate.perplexity | done | 2.0 s | 500 MB |  | perplexity 10 |
| prune | prune.wanda | done | 2.0 s | 500 MB | 4.00 kB | sparsity 0.5 |
| distill | distill.logits | done | 2.0 s | 500 MB | 4.00 kB | loss 2.5 |
| gptq | quantize.gptq | done | 2.0 s | 500 MB | 1.00 kB | error 0.0035 |
| quality | evaluate.perplexity | done | 2.0 s | 500 MB |  | perplexity 11 |

Job {plan.job_id}, model m.

"""
    )


def test_a_summary_that_is_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "summary.md"
    place.write_text("x" * github.SUMMARY_LIMIT)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    plan = made(tmp_path / "jobs")
    github.summarize(job_report.read(tmp_path / "jobs", plan.job_id))
    assert place.stat().st_size == github.SUMMARY_LIMIT


def test_nothing_in_a_summary_is_markup(tmp_path: Path) -> None:
    plan = made(tmp_path, steps=[{"id": "a", "kind": "fake.a"}])
    report = job_report.read(tmp_path, plan.job_id)
    hostile = replace(report.steps[0], id="a|b <b>*x*</b> @me `c|d` [l](u)", kind="fake.a`")
    row = next(line for line in github.markdown(replace(report, steps=(hostile,))).splitlines() if "done |" in line)
    assert row.startswith("| a\\|b &lt;b&gt;\\*x\\*&lt;/b&gt; &#64;me `c\\|d` \\[l\\](u) | fake.a&#96; | done |")
