from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import Diagnostic, RecipeError, Span
from runner.execute.requests import request
from runner.execute.settings import ApplySettings
from runner.job import provenance
from runner.recipe import secrets
from runner.report import job_report, report_json
from runner.report.ci import github, junit
from runner.report.html import page
from tests.job.plans import plan as planned
from tests.report.jobs import made

RECIPE = """\
version: 1
name: demo
params: {hf_token: hunter22, api-key: 987654321, tokens: 4096, author: me}
model: {source: "https://joe:s3cr3t@host/model"}
"""


@pytest.mark.parametrize(
    "name", ["token", "hf_token", "HF_TOKEN", "api_key", "apikey", "db-password", "aws.secret", "auth"]
)
def test_names_of_secrets(name: str) -> None:
    assert secrets.is_secret(name)


@pytest.mark.parametrize("name", ["tokens", "tokenizer", "author", "key", "token_ids", "max_tokens", "monkey"])
def test_names_of_other_things(name: str) -> None:
    assert not secrets.is_secret(name)


def test_values_are_hidden_wherever_they_stand() -> None:
    known = secrets.values({"params": {"password": "abcd", "n": 1}, "steps": [{"k": {"api_key": 12345}}]})
    assert known == {"abcd", "12345"}
    assert secrets.hide({"x": ["say abcd", 12345, {"api_key": 12345}]}, known) == {
        "x": ["say •••", 12345, {"api_key": "•••"}]
    }


@pytest.mark.parametrize(
    "text",
    ["hf_abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrstuvwx", "AKIAABCDEFGHIJKLMNOP", "glpat-abcdefghijklmnopqrst"],
)
def test_tokens_by_their_form(text: str) -> None:
    assert secrets.hide(f"use {text} now", frozenset()) == "use ••• now"


def test_no_report_says_a_secret(tmp_path: Path) -> None:
    told = {"event": "message", "time": 5, "step": 0, "level": "warning", "text": "refused hunter22"}
    failed = {
        "event": "step_failed",
        "time": 6,
        "step": 1,
        "id": "prune",
        "kind": "k",
        "error": "bad hunter22",
        "exit_code": 1,
    }
    plan = made(tmp_path, "failed", done=1, events=[told, failed], recipe=RECIPE)
    report = job_report.read(tmp_path, plan.job_id)
    for text in (
        json.dumps(report_json.document(report)),
        page.html(report),
        junit.text([report]),
        github.markdown(report),
    ):
        for secret in ("hunter22", "987654321", "s3cr3t"):
            assert secret not in text
        assert "•••" in text or "\\u2022" in text


LINE = 'params: {hf_token: hunter22, "api_key": "9876 5432", author: someone}'


def test_a_complaint_that_quotes_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = Diagnostic("R204", "`x` must be 1; got hunter22", None, Span("r.yaml", 3, 1, 1, LINE))
    error = RecipeError([complaint])
    told = junit.text([junit.Refused("r.yaml", error.render(), 2)])
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    stream = io.StringIO()
    github.complain(error, stream)
    for text in (told, stream.getvalue()):
        assert "hunter22" not in text
        assert "9876 5432" not in text
        assert "got •••" in text
    assert "someone" in told


def test_what_workers_write_into_model_cards() -> None:
    plan = planned([{"id": "a", "kind": "quantize.rtn"}])
    secret = {**plan.recipe.document, "params": {"hf_token": "hunter22"}, "description": "by hunter22"}
    plan = replace(plan, recipe=replace(plan.recipe, document=secret))
    asked = request(plan, plan.steps[0], {}, Path("s"), ApplySettings("", threads=1))
    assert "hunter22" not in asked.recipe_text
    assert "description: by •••" in asked.recipe_text
    hidden = replace(plan, steps=(replace(plan.steps[0], params={"ignore": ["by hunter22"]}),))
    asked = request(hidden, hidden.steps[0], {}, Path("s"), ApplySettings("", threads=1))
    assert asked.step.params == {"ignore": ["by •••"]}


def test_places_in_the_statement() -> None:
    plan = planned([{"id": "a", "kind": "quantize.rtn"}])
    plan = replace(plan, model=replace(plan.model, source="https://joe:s3cr3t@host/model"))
    statement = provenance.statement(plan, (), "", "", {})
    (found, *_) = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert found["uri"] == "https://•••@host/model"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("hf_token=abcd efgh", "hf_token=•••"),
        ("--set=api_key=abcdefgh", "--set=api_key=•••"),
        ("bits=4", "bits=4"),
        ("tokens=1000", "tokens=1000"),
        ("model=https://me:word@host/model", "model=https://•••@host/model"),
        ("recipes/a.yaml", "recipes/a.yaml"),
    ],
)
def test_a_command_is_repeated_without_the_secrets_that_it_sets(word: str, shown: str) -> None:
    assert secrets.hide_in_word(word) == shown
