from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.report import document, github, job, junit, page, secrets
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
    report = job.read(tmp_path, plan.job_id)
    for text in (json.dumps(document.of(report)), page.html(report), junit.text([report]), github.markdown(report)):
        for secret in ("hunter22", "987654321", "s3cr3t"):
            assert secret not in text
        assert "•••" in text or "\\u2022" in text
