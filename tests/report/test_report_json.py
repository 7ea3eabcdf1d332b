from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runner.job import files
from runner.report import job_report, report_json
from runner.report.html import publish
from runner.report.report_json import Block
from tests.report.jobs import gate, made

SCHEMA = json.loads(
    (Path(__file__).parent.parent.parent / "schemas" / "job" / "report.schema.json").read_text(encoding="utf-8")
)


CARD = """\
# x

## Use it

`pip install a`, then

```python
load('path/to/this/folder')

x()
```

Serve it.

## Recipe

no
"""


def valid(found: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("status", "done"), [("done", 5), ("gate-missed", 5), ("failed", 1), ("running", 2), ("interrupted", 0)]
)
def test_a_job_in_every_state_meets_the_schema(tmp_path: Path, status: str, done: int) -> None:
    plan = made(tmp_path, status, done=done, events=[gate(4, "quality", float("nan"), 12.0)])
    found = json.loads(json.dumps(report_json.document(job_report.read(tmp_path, plan.job_id)), allow_nan=False))
    valid(found)
    assert [step["digest"] is not None for step in found["steps"]] == [n < done for n in range(5)]


def test_a_job_of_which_only_the_plan_is_left(tmp_path: Path) -> None:
    plan = made(tmp_path, done=0)
    for name in ("job.json", "events.jsonl", "environment.json", "recipe.yaml"):
        (tmp_path / plan.job_id / name).unlink()
    found = report_json.document(job_report.read(tmp_path, plan.job_id))
    valid(found)
    assert (found["status"], found["verdict"]["text"]) == ("new", "Nothing ran yet.")


def test_torn_files(tmp_path: Path) -> None:
    plan = made(tmp_path, "running", done=1)
    for name in ("job.json", "events.jsonl", "environment.json"):
        (tmp_path / plan.job_id / name).write_text('{"status": "run')
    valid(report_json.document(job_report.read(tmp_path, plan.job_id)))


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = made(tmp_path)
    texts = []
    for _ in range(2):
        publish.write(job_report.read(tmp_path, plan.job_id))
        texts.append([(tmp_path / plan.job_id / name).read_bytes() for name in ("report.json", "report.html")])
    assert texts[0] == texts[1]
    assert texts[0][0].decode() == files.pretty(report_json.document(job_report.read(tmp_path, plan.job_id)))


def test_layers_and_curves_are_there(tmp_path: Path) -> None:
    plan = made(tmp_path)
    steps = {step["id"]: step for step in report_json.document(job_report.read(tmp_path, plan.job_id))["steps"]}
    assert [layer["error"] for layer in steps["gptq"]["layers"]] == pytest.approx([0.002, 0.004, 0.006, 0.008])
    assert len(steps["distill"]["curve"]["points"]) == 40
    assert steps["distill"]["curve"]["kept"] == 40


def test_how_to_use_it_comes_from_the_model_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    assert report_json.usage(tmp_path) == (
        Block("`pip install a`, then"), Block(f"load('{tmp_path}')\n\nx()", "python"), Block("Serve it.")
    )  # fmt: skip


def test_no_model_card(tmp_path: Path) -> None:
    assert report_json.usage(tmp_path) == report_json.usage(None) == ()
