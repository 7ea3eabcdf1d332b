"""Which groups are delicate, and why, in whole sentences; the plots of losses and of bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contracts.sensitivity import Group, Sensitivity, SiteFacts, SiteInputs
from runner.report import assigned_bits, delicate
from runner.report.html import bits_figures
from tests.report.jobs import showcase

USUAL = SiteInputs(outliers=2.0, effective_columns=40.0, columns=128)


def group(name: str, layer: int, loss: float, *, error: float = 0.1, inputs: SiteInputs | None = USUAL) -> Group:
    site = SiteFacts(1000, 512 if inputs else 3, {"2": error, "4": error / 20}, inputs)
    return Group({f"model.layers.{layer}.{name}": site}, layer, {"2": loss, "4": loss / 20})


def measured(*groups: Group, measure: str = "kl") -> Sensitivity:
    settings: dict[str, Any] = {"group_size": 128, "symmetric": True, "format": "pack-quantized"}
    candidates = {name: {"bits": int(name), **settings} for name in ("2", "4")}
    return Sensitivity(measure, "nats per token", candidates, groups, {"windows": 8, "sequence_length": 64})


QUIET = tuple(group("mlp.up_proj", layer, 0.01) for layer in range(2, 7))


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (
            {"inputs": SiteInputs(44.0, 40.0, 128)},
            "its inputs have outliers, a column 44 times the median one",
        ),
        ({"inputs": SiteInputs(2.0, 3.25, 128)}, "its inputs amount to 3.2 effective columns of 128"),
        ({"inputs": None}, "1 of its 1 matrices saw too few tokens to calibrate"),
        ({"error": 0.3}, "rounding changes its outputs by 30.00%, those of most modules by 10.00%"),
        ({}, "the model's predictions depend on it more, at a usual error of its outputs"),
    ],
)
def test_the_reason_of_a_delicate_group(first: dict[str, Any], why: str) -> None:
    lines = delicate.sentences(measured(group("mlp.down_proj", 0, 0.15, **first), *QUIET))
    assert lines[0] == (
        f"model.layers.0.mlp.down_proj is delicate, 75.0% of the loss at 2 bits with 16.7% of the weights: {why}."
    )
    assert lines[-1] == "model.layers.6.mlp.up_proj bears the fewest bits best: 15 times less a weight than the first."
    assert len(lines) == 4


def test_errors_of_outputs_alone_say_nothing_of_predictions() -> None:
    lines = delicate.sentences(measured(group("mlp.down_proj", 0, 0.15), *QUIET, measure="output_error"))
    assert lines[0].endswith("of the weights: its outputs change more for its size.")


def test_details_of_other_kinds_have_no_measurement() -> None:
    found = measured(*QUIET)
    assert delicate.parse({"sensitivity": found.to_json()}) == found
    for foreign in ({}, {"sensitivity": 3}, {"sensitivity": {"schema": 1}}, {"sensitivity": {"schema": 9}}):
        assert delicate.parse(foreign) is None
    assert assigned_bits.parse({"assignment": {"bits": 4}}) is None


def test_plots_of_losses_and_bits(tmp_path: Path) -> None:
    step = showcase(tmp_path).steps[0]
    found = measured(group("mlp.down_proj", 0, 0.15), group("mlp.down_proj", 1, 0.02), *QUIET)
    bits = {f"model.layers.{layer}.mlp.{name}_proj": 2 + layer for layer in (0, 1) for name in ("up", "down")}
    assigned = {"bits": bits, "loss": 0.125, "unit": found.unit, "average_bits": 2.7, "bytes": 1000}
    assert bits_figures.losses(step) is None
    assert bits_figures.assignment(step) is None
    losses = str(bits_figures.losses(replace(step, sensitivity=found)))
    assert "Loss a weight at 2 bits (kl, nats per token). model.layers.0.mlp.down_proj is delicate" in losses
    assert "layer 0, mlp.down_proj: 0.00015" in losses
    drawn = str(bits_figures.assignment(replace(step, assignment=assigned)))
    assert "2 bits in 2 modules, 3 bits in 2 modules; 2.700 bits a weight with scales, forecast loss 0.125" in drawn
    assert "layer 1, mlp.up_proj: 3 bits" in drawn
