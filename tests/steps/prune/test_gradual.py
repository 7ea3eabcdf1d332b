"""`prune.gradual` from its parameters to the checkpoint, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contracts.step_kind import DataFacts, Inputs
from runner.errors import Interrupted
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.steps.prune import gradual
from tests.host import Host
from tests.tiny import save, tokens

IDS = tokens(windows=16)
SETTINGS: dict[str, Any] = {"batch_size": 4, "steps": 12, "update_every": 3, "precision": "fp32", "save_every": 4}


class Stopping(Host):
    """Interrupts at the nth safe point after the teacher has spoken."""

    def __init__(self, *args: Any, stop_at: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_at = stop_at

    def safe_point(self) -> None:
        steps = [event["at"] for event in self.events if event["event"] == "train"]
        if self.stop_at is not None and steps and steps[-1] >= self.stop_at:
            raise Interrupted("stopped")


def host(folder: Path, model: Path, **params: Any) -> Stopping:
    return Stopping(folder, "prune.gradual", model, IDS, others={"teacher": model}, **(SETTINGS | params))


def zeros(folder: Path) -> dict[str, float]:
    tensors = load_file(folder / "model.safetensors")
    return {name: float((tensor == 0).float().mean()) for name, tensor in tensors.items() if "proj" in name}


@pytest.mark.parametrize("loss", ["distill", "next_token"])
def test_every_matrix_ends_at_the_sparsity_asked_for(loss: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", dtype=torch.bfloat16)
    step = host(tmp_path / "step", model, loss=loss, sparsity=0.75, ignore=["lm_head", "*.down_proj"])
    result = gradual.run(step)
    assert result.metrics["sparsity"] == 0.75
    for name, part in zeros(step.out_dir).items():
        if "down_proj" in name:
            assert part < 0.01, name
        else:
            assert part == pytest.approx(0.75, abs=0.002), name
    before, after = load_file(model / "model.safetensors"), load_file(step.out_dir / "model.safetensors")
    kept = after["model.layers.0.mlp.up_proj.weight"] != 0
    moved = (before["model.layers.0.mlp.up_proj.weight"] != after["model.layers.0.mlp.up_proj.weight"])[kept]
    assert moved.float().mean() > 0.2, "what is left was trained"


def test_a_training_that_goes_on_ends_with_the_same_bytes(tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    whole, stopped = host(tmp_path / "a", model), host(tmp_path / "b", model)
    gradual.run(whole)
    stopped.stop_at = 7
    with pytest.raises(Interrupted):
        gradual.run(stopped)
    stopped.stop_at = None
    gradual.run(stopped)
    assert (whole.out_dir / "model.safetensors").read_bytes() == (stopped.out_dir / "model.safetensors").read_bytes()


def test_only_states_of_full_sparsity_are_kept_as_the_best(tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    step = host(tmp_path / "step", model, evaluation="calibration", evaluate_every=1, end_step=6)
    result = gradual.run(step)
    assert result.details["evaluations"][0]["step"] == 6
    assert min(zeros(step.out_dir).values()) >= 0.49


def complaints_about(model: Path, **params: Any) -> list[str]:
    found = facts(model, str(model))
    inputs = Inputs(found, {"teacher": found}, {"data": DataFacts("text", 16, 24, 0, "")}, machine_facts("cpu"))
    complaints = gradual.check(defaults("prune.gradual", {"data": "text"} | SETTINGS | params), inputs)
    return [f"{complaint.code} {complaint.path}: {complaint.message}; {complaint.help}" for complaint in complaints]


def test_schedules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    assert complaints_about(model) == []
    assert complaints_about(model, initial_sparsity=0.6) == [
        "R485 ('initial_sparsity',): `initial_sparsity` 0.6 is above `sparsity` 0.5; weights that became zero stay zero"
    ]
    assert complaints_about(model, end_step=13) == [
        "R485 ('end_step',): `end_step` 13 comes after the last step, 12; use at most 12, or more `steps`"
    ]
    assert complaints_about(model, begin_step=9, end_step=5) == [
        "R485 ('begin_step',): `begin_step` 9 comes after `end_step` 5; begin earlier"
    ]
    assert complaints_about(model, begin_step=13) == [
        "R485 ('begin_step',): `begin_step` 13 comes after the last step, 12; begin earlier, or use more `steps`"
    ]
