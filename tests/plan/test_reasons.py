"""Why a step runs, in a phrase."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from runner.plan.reasons import reason
from runner.plan.types import PlannedStep

NOW: dict[str, Any] = {
    "kind": "quantize.gptq", "kind_version": 2,
    "params": {"bits": 3, "overrides": {"*.q_proj": {"bits": 8}}}, "seed": 1,
    "inputs": {"checkpoint": "k1", "against": "m"}, "environment": {"torch": "2.14.0", "device": "cpu"},
    "data": {"data": {"digest": "d", "samples": 128, "sequence_length": 512}},
}  # fmt: skip
STEP = PlannedStep(
    index=1, id="gptq", kind="quantize.gptq", kind_version=2, params={}, seed=1,
    inputs={"checkpoint": "wanda", "against": "model"}, data={"data": "calibration"}, consumes=(),
    produces="checkpoint", gates={}, key="", key_inputs=NOW, folder="02-gptq",
)  # fmt: skip


def said(change: Callable[[dict[str, Any]], Any], state: str = "run", wanda: str = "cached") -> str:
    before = copy.deepcopy(NOW)
    change(before)
    return reason(STEP, state, {"wanda": wanda}, {"gptq": before})


def test_without_history() -> None:
    assert reason(STEP, "run", {}, None) == "first run"
    assert reason(STEP, "resume", {}, None) == "interrupted"
    assert reason(STEP, "cached", {}, None) == "nothing changed"
    assert reason(STEP, "run", {}, {"other": NOW}) == "step is new"


def test_same_inputs() -> None:
    assert said(lambda before: None) == "no result in the store"
    assert said(lambda before: None, state="resume") == "interrupted"


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda b: b["params"].update(bits=4), "`bits` changed 4 → 3"),
        (lambda b: b["params"].update(bits=3.0), "`bits` changed 3.0 → 3"),
        (lambda b: b["params"].pop("bits"), "`bits` is new"),
        (lambda b: b["params"].update(old=1), "`old` is gone"),
        (
            lambda b: b["params"]["overrides"]["*.q_proj"].update(bits="channel"),
            "`overrides.*.q_proj.bits` changed channel → 8",
        ),
        (lambda b: b["params"].update(overrides={}), "`overrides.*.q_proj` is new"),
        (lambda b: b["params"].update(bits=[1]), "`bits` changed"),
        (lambda b: b["data"]["data"].update(digest="x", samples=1), "data `calibration` changed"),
        (lambda b: b["data"]["data"].update(samples=None), "`samples` changed null → 128 in data `calibration`"),
        (lambda b: b["inputs"].update(against="x"), "model changed"),
        (lambda b: b["inputs"].update(checkpoint="x"), "input step `wanda` changed"),
        (lambda b: b.update(seed=0), "seed changed"),
        (lambda b: b.update(kind_version=1), "`quantize.gptq` itself changed, version 1 → 2"),
        (lambda b: b.update(kind="quantize.rtn"), "the step was `quantize.rtn`"),
        (lambda b: b["environment"].update(torch="2.13.0"), "torch 2.13.0 → 2.14.0"),
        (lambda b: b.update(environment={"torch": "2.14.0"}), "device unknown → cpu"),
        (lambda b: b.update(params={"bits": True}), "`bits` changed true → 3, `overrides` is new"),
    ],
)
def test_changes(change: Callable[[dict[str, Any]], Any], phrase: str) -> None:
    assert said(change) == phrase


def test_an_input_that_runs_again() -> None:
    assert said(lambda b: b["inputs"].update(checkpoint="x"), wanda="run") == "input step `wanda` runs again"
    assert said(lambda b: b["inputs"].update(checkpoint="x"), wanda="resume") == "input step `wanda` runs again"


def test_many_changes_are_cut_short() -> None:
    def change(before: dict[str, Any]) -> None:
        before["params"].update({f"p{i}": i for i in range(4)})
        before["seed"] = 0

    assert said(change) == "`p0` is gone, `p1` is gone, `p2` is gone and 2 more"
