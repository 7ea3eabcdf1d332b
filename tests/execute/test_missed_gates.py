"""What a missed gate stops, and what goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.execute import missed_gates
from runner.job.store import Store
from runner.progress import board
from tests.execute.test_scheduler import _record, several
from tests.job.plans import plan

GATE = {"loss": {"max": 1.0}}


def steps(**rule: Any) -> list[dict[str, Any]]:
    """`a` misses its gate, measured by `quality`; `mend` and `engine` take it, `more` the mended; `b` is on its own."""
    gates = {"loss": {**GATE["loss"], **rule}}
    of = {"a": {"checkpoint": "a"}, "b": {"checkpoint": "b"}, "mend": {"checkpoint": "mend"}}
    return [
        {"id": "a", "kind": "fake.layers", "inputs": {"checkpoint": "model"}},
        {"id": "quality", "kind": "fake.score", "produces": "metrics", "gates": gates, "inputs": of["a"]},
        {"id": "mend", "kind": "fake.layers", "params": {"x": 2}, "inputs": of["a"]},
        {"id": "engine", "kind": "fake.layers", "params": {"x": 3}, "inputs": of["a"]},
        {"id": "more", "kind": "fake.layers", "inputs": of["mend"]},
        {"id": "b", "kind": "fake.layers", "params": {"x": 1}, "inputs": {"checkpoint": "model"}},
        {"id": "compared", "kind": "fake.score", "produces": "metrics", "inputs": of["b"]},
    ]


@pytest.mark.parametrize(
    ("rule", "code", "asked"),
    [
        ({}, 3, ["a", "quality", "b", "compared"]),
        ({"on_miss": "stop"}, 3, ["a", "quality", "b", "compared"]),
        ({"mended_by": "mend"}, 3, ["a", "quality", "mend", "more", "b", "compared"]),
        ({"on_miss": "continue"}, 3, ["a", "quality", "mend", "engine", "more", "b", "compared"]),
        ({"on_miss": "warn"}, 0, ["a", "quality", "mend", "engine", "more", "b", "compared"]),
        ({"max": 3.0}, 0, ["a", "quality", "mend", "engine", "more", "b", "compared"]),
    ],
)
def test_what_runs_after_a_missed_gate(tmp_path: Path, rule: dict[str, Any], code: int, asked: list[str]) -> None:
    """And the same again from the store, where every step that ran is found."""
    for seats, ran in ((1, asked), (2, [])):
        (job,), executor, kept, _ = several(tmp_path, [plan(steps(**rule))], loss=2.0, seats=seats)
        assert (job.code, [id for id, _ in executor.asked]) == (code, ran)
        assert list(job.entries) == asked
        assert kept[0].one("job_finished")["exit_code"] == code
        stopped = [step["id"] for step in steps() if step["id"] not in asked]
        names = {step.index: step.id for step in plan(steps()).steps}
        said = kept[0].named("message")
        assert [names[event["step"]] for event in said] == stopped
        assert {event["text"] for event in said} <= {"it does not run: `quality` missed a gate"}


def test_a_step_that_ends_early_at_its_gate_stops_what_depends_on_it(tmp_path: Path) -> None:
    (job,), executor, _, _ = several(tmp_path, [plan(steps())], {"a": 3})
    assert (job.code, [id for id, _ in executor.asked]) == (3, ["a", "b", "compared"])


def test_a_failure_is_worse_than_a_missed_gate(tmp_path: Path) -> None:
    (job,), _, _, _ = several(tmp_path, [plan(steps())], {"b": 1}, loss=2.0)
    assert job.code == 1


def test_a_gate_that_compares_with_a_step_that_was_stopped_stops_its_step_too() -> None:
    chain = steps()
    chain.insert(4, {"id": "after", "kind": "fake.score", "produces": "metrics", "inputs": {"checkpoint": "engine"}})
    chain[-1]["gates"] = {"loss": {"max_ratio_to": "after", "value": 2.0}}
    made = plan(chain).steps
    stopped = missed_gates.dependents(made, made[1], [GATE["loss"]])
    assert stopped == ["mend", "engine", "after", "more", "compared"]


def test_of_several_gates_all_must_be_mended() -> None:
    made = plan(steps()).steps
    rules: list[dict[str, Any]] = [{"max": 1.0, "mended_by": "mend"}, {"max": 1.0}]
    assert missed_gates.dependents(made, made[1], rules[:1]) == ["engine"]
    assert missed_gates.dependents(made, made[1], rules) == ["mend", "engine", "more"]


@pytest.mark.parametrize(
    ("shift", "rule", "code", "word"),
    [
        (0.005, {}, 0, "passed"),
        (0.0195, {}, 3, "undecided"),
        (0.0195, {"on_miss": "warn"}, 0, "undecided (only a warning)"),
        (0.04, {}, 3, "missed"),
    ],
)
def test_a_confidence_compares_the_windows_in_the_records(
    tmp_path: Path, shift: float, rule: dict[str, Any], code: int, word: str
) -> None:
    """A real kind, whose results are in the store: the gate is judged from the losses of their windows."""
    gate = {"perplexity": {"max_ratio_to": "baseline", "value": 1.02, "confidence": 0.95, **rule}}
    made = plan([
        {"id": "baseline", "kind": "evaluate.perplexity", "produces": "metrics", "params": {"n": 1}},
        {"id": "quality", "kind": "evaluate.perplexity", "produces": "metrics", "params": {"n": 2}, "gates": gate},
    ])  # fmt: skip
    draw = np.random.default_rng(0)
    base = draw.normal(2.5, 0.5, 64)
    store = Store(tmp_path / "store")
    store.prepare()
    for step, losses in zip(made.steps, (base, base + draw.normal(shift, 0.02, 64)), strict=True):
        record = replace(
            _record(step, {}, {"perplexity": math.exp(losses.mean())}), details={"samples": {"loss": losses.tolist()}}
        )
        store.commit(store.stage(step.key), record)
    (job,), executor, kept, _ = several(tmp_path, [made])
    assert (job.code, executor.asked) == (code, [])
    found = kept[0].one("gate")
    assert board.gate_text(found).startswith(f"gate {word}: `perplexity` is ")
    assert found["undecided"] == word.startswith("undecided")
    assert ("64 windows: its 95 % interval is " in found["text"]) == found["undecided"]
    assert found["low"] < found["value"] < found["high"]
    assert board.gate_level(found) == ("good" if word == "passed" else "warn" if rule else "bad")
