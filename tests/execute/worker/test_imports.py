"""What the worker imports before a step, and how. Each case in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

CODE = """
import gc, json, sys
from runner.contracts.lineage import AppliedStep
from runner.execute.messages import DataRef, Request
from runner.execute.worker.imports import import_libraries

request = Request(
    index=0, id="a", kind="a.b", kind_version=1, key="k", key_inputs={{"environment": {environment}}}, params={{}},
    step=AppliedStep("a", "a.b", {{}}),
    seed=0, device="cpu", threads=1, store="", recipe="", recipe_text="", inputs={{}},
    data={data}, produces="checkpoint", tokenizer="", command="",
)
import_libraries(request)
found = [name for name in ("torch", "transformers.modeling_utils") if name in sys.modules]
print(json.dumps(dict(found=found, collects=gc.isenabled(), frozen=gc.get_freeze_count())))
"""
TORCH = {"torch": "2.13.0"}
DATA = '{"data": DataRef({}, (), "d", 1)}'


@pytest.mark.parametrize(
    ("environment", "data", "found", "objects"),
    [
        ({}, "{}", [], 0),
        ({}, DATA, [], 0),
        pytest.param(TORCH, "{}", ["torch"], 100_000, marks=pytest.mark.nightly),
        (TORCH, DATA, ["torch", "transformers.modeling_utils"], 200_000),
    ],
)
def test_a_step_gets_what_it_computes_with(
    environment: dict[str, str], data: str, found: list[str], objects: int
) -> None:
    """Whatever was imported is exempt from later collections, which go on."""
    code = CODE.format(environment=environment, data=data)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert (answer["found"], answer["collects"]) == (found, True)
    assert answer["frozen"] > objects
