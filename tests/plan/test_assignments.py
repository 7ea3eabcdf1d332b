"""Bits from a budget through a recipe: what the plan knows before and after the measurement, and what the lock has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

import runner
from runner.contracts import sensitivity
from runner.plan import assignments, lock
from runner.recipe.schema import kinds as discovery
from runner.recipe.schema.load import _read
from tests.model.layerwise.test_final_hidden import plain_logits

RECIPE = """\
version: 1
name: budget
model: {source: demo:tiny-llama}
data:
  calibration: {source: demo:stdlib, split: calibration, samples: 4, sequence_length: 64}
steps:
  - analyze.sensitivity: {data: calibration}
    id: sensitivity
  - quantize.rtn: {bits: auto, sensitivity: sensitivity, budget: {average_bits: 3.5}, group_size: 128, grid: mse}
"""


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runner.Job, Any]:
    folder = tmp_path_factory.mktemp("budget")
    (folder / "r.yaml").write_text(RECIPE)
    before = runner.plan(runner.load(folder / "r.yaml"), jobs=folder / "jobs")
    return folder, runner.apply(before), before


@pytest.mark.nightly
def test_before_the_measurement_the_plan_assigns_nothing(applied: tuple[Path, runner.Job, Any]) -> None:
    _, _, before = applied
    quantize = before.preview.forecasts[1]
    assert quantize.assignment is None
    written = quantize.step.account.written
    unknown = {name for name, shape in written.items() if shape is None}
    assert len(unknown) == 3 * 42  # packed weights, their scales and shapes: the run decides
    assert quantize.step.key_inputs["inputs"]["sensitivity"] == before.preview.forecasts[0].step.key
    assert "scipy" in quantize.step.key_inputs["environment"]


def test_afterwards_plan_report_and_locks_have_the_assignment(applied: tuple[Path, runner.Job, Any]) -> None:
    folder, job, _ = applied
    assigned = job.records["rtn"].details["assignment"]
    assert assigned["average_bits"] <= 3.5
    assert len(set(assigned["bits"].values())) > 1
    again = runner.plan(runner.load(folder / "r.yaml"), jobs=folder / "jobs")
    forecast = again.preview.forecasts[1]
    assert forecast.assignment == assigned
    assert "rtn: " in str(again)
    assert f"forecast loss {assigned['loss']:.4g} relative squared error" in str(again)
    assert job.step("rtn").assignment == assigned
    text = (job.path / "recipe.lock").read_text()
    assert f"average_bits: {assigned['average_bits']}" in text
    entries = assignments.entries([(again.preview.plan, {"rtn": assigned})])
    document = lock.document([again.preview.plan], runner.__version__, {}, None, entries)
    Draft202012Validator(_read(discovery.schemas_folder() / "job" / "lock.schema.json")).validate(document)
    assert lock.drift(lock.document([again.preview.plan], runner.__version__, {}), document) == []
    card = (Path(job.output or "") / "README.md").read_text()
    assert "## Bits of each module" in card
    assert "budget" in card


def test_the_artifact_meets_its_schema(applied: tuple[Path, runner.Job, Any]) -> None:
    _, job, _ = applied
    out = Path(job.path) / "steps" / job.steps[0].folder / "out"
    rules = _read(discovery.schemas_folder() / "artifacts" / "sensitivity.schema.json")
    Draft202012Validator(rules).validate(sensitivity.read(out).to_json())


def test_transformers_loads_the_result(applied: tuple[Path, runner.Job, Any]) -> None:
    _, job, _ = applied
    ids = torch.arange(3, 67).reshape(1, 64)
    found = plain_logits(Path(job.output or ""), ids, torch.float32)
    assert torch.isfinite(found).all()


def test_a_loss_that_no_assignment_has_is_refused_once_it_is_measured(applied: tuple[Path, runner.Job, Any]) -> None:
    folder, _, _ = applied
    (folder / "r2.yaml").write_text((folder / "r.yaml").read_text().replace("average_bits: 3.5", "max_loss: 1e-6"))
    with pytest.raises(runner.RecipeError) as refused:
        runner.plan(runner.load(folder / "r2.yaml"), jobs=folder / "jobs")
    (complaint,) = refused.value.diagnostics
    assert complaint.code == "R812"
    assert complaint.message.startswith("`max_loss: 1e-06` is less than any assignment loses: the best loses 0.000")
    assert complaint.span is not None
    assert complaint.span.line == 9


def test_plans_that_differ_are_told_apart_in_a_lock(applied: tuple[Path, runner.Job, Any]) -> None:
    _, job, before = applied
    plan, own = before.preview.plan, job.records["rtn"].details["assignment"]
    same = assignments.entries([(plan, {"rtn": own}), (plan, {"rtn": own})])
    assert list(same) == ["rtn"]
    assert same["rtn"]["digest"] != assignments.entries([(plan, {"rtn": {**own, "bits": {}}})])["rtn"]["digest"]
