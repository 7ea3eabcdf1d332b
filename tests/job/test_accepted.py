from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.errors import UsageError
from runner.job import accepted
from tests.job.plans import plan
from tests.job.test_directory import valid

METRICS = {"quality": {"perplexity": 15.5}}


def job(id: str, **matrix: Any) -> accepted.Accepted:
    return accepted.Accepted("demo", matrix, id, METRICS, ("0" * 64,), "", "apply")


def gated(rule: dict[str, Any]) -> Any:
    return plan([{"id": "quality", "kind": "k", "produces": "metrics", "gates": {"perplexity": rule}}])


def test_a_pointer_carries_the_metrics_of_its_job(tmp_path: Path) -> None:
    made = accepted.move(tmp_path, job("demo-1"))
    assert accepted.read(tmp_path, "demo", {}) == made
    document = json.loads((tmp_path / "accepted" / "demo.json").read_text())
    assert document | {"time": ""} == {
        "schema": 1, "recipe": "demo", "matrix": {}, "job": "demo-1", "metrics": METRICS,
        "keys": ["0" * 64], "time": "", "by": "apply",
    }  # fmt: skip


def test_a_pointer_meets_its_schema(tmp_path: Path) -> None:
    accepted.move(tmp_path, job("demo-1", bits=4))
    (path,) = (tmp_path / "accepted").iterdir()
    valid(json.loads(path.read_text()), "accepted")


def test_every_combination_has_its_own(tmp_path: Path) -> None:
    for bits in (3, 4):
        accepted.move(tmp_path, job(f"demo-{bits}", bits=bits))
    found = [accepted.read(tmp_path, "demo", {"bits": bits}) for bits in (3, 4)]
    assert [entry.job for entry in found if entry] == ["demo-3", "demo-4"]
    assert accepted.read(tmp_path, "demo", {}) is None
    assert sorted(entry.job for entry in accepted.every(tmp_path)) == ["demo-3", "demo-4"]


def test_accepting_the_same_job_again_changes_nothing(tmp_path: Path) -> None:
    accepted.move(tmp_path, job("demo-1"))
    path = tmp_path / "accepted" / "demo.json"
    before = path.stat().st_ino
    accepted.move(tmp_path, replace(job("demo-1"), by="hand"))
    assert path.stat().st_ino == before


def test_numbers_that_json_has_not_are_left_out(tmp_path: Path) -> None:
    accepted.move(tmp_path, replace(job("demo-1"), metrics={"quality": {"a": float("nan"), "b": 1.0}}))
    found = accepted.read(tmp_path, "demo", {})
    assert found is not None
    assert found.metrics == {"quality": {"b": 1.0}}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "demo"}'])
def test_a_torn_pointer_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "accepted").mkdir()
    (tmp_path / "accepted" / "demo.json").write_text(text)
    assert accepted.read(tmp_path, "demo", {}) is None
    assert accepted.every(tmp_path) == []


def test_what_gates_refer_to(tmp_path: Path) -> None:
    assert accepted.gate_references(tmp_path, gated({"max": 20})) == {}
    assert accepted.gate_references(tmp_path, gated({"max_ratio_to": "baseline", "value": 1.1})) == {}
    first = gated({"max_ratio_to": "accepted", "value": 1.01})
    assert accepted.gate_references(tmp_path, first) == {"accepted": None}
    accepted.move(tmp_path, job("demo-1"))
    assert accepted.gate_references(tmp_path, first) == {"accepted": METRICS}


def test_a_named_job_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        accepted.gate_references(tmp_path, gated({"max_ratio_to": "job:demo-77", "value": 1.01}))
    assert caught.value.message == f"there is no job `demo-77` in {tmp_path}"


def test_what_a_gate_refers_to_enters_no_step_key() -> None:
    rules = ({"max": 20}, {"max_ratio_to": "accepted", "value": 1.01}, {"max_ratio_to": "job:a", "value": 1.0})
    assert len({gated(rule).steps[0].key for rule in rules}) == 1
