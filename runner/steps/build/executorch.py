"""An ExecuTorch program of a checkpoint for phones: XNNPACK's 4-bit and 8-bit products, with the cache inside."""

from __future__ import annotations

from dataclasses import replace

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import CHECKPOINT, ENGINE, QUANTIZED, Context, Cost, Inputs, Params, Requirement, Result
from runner.errors import Diagnostic
from runner.export import executorch_layouts
from runner.model.layerwise import memory_budget
from runner.steps import head_calibration

VERSION = 2
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = ENGINE
REQUIRES = (Requirement("executorch", "executorch"),)
METRICS = ("bytes",)

_EXPORTER = 900 << 20  # ExecuTorch's exporter and torchao imported (measured)
_SECONDS, _LAYER_SECONDS = 20.0, 30.0  # nearly all of it in ExecuTorch's passes over the graph (measured, 576 wide)


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    return executorch_layouts.refuse(inputs.checkpoint, params)


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; in memory are the model in float32, its integers and twice the program."""
    facts = inputs.checkpoint
    written = executorch_layouts.nbytes(facts, params)
    weights = sum(site.size for site in facts.sites)
    resident = 5 * weights + memory_budget.rest_bytes(facts, 4) * 2 + 3 * written
    seconds = _SECONDS + _LAYER_SECONDS * facts.layer_count
    cost = Cost(memory_budget.RUNTIME + _EXPORTER + resident, written, 0, seconds)
    data = head_calibration.data_of(params, inputs, params["embedding"])
    return head_calibration.with_calibration(cost, facts, data, inputs.machine)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    data = head_calibration.data_of(params, inputs, params["embedding"])
    return replace(inputs.checkpoint, engine=executorch_layouts.engine(inputs.checkpoint, params, data))


def run(ctx: Context) -> Result:
    from runner.export import executorch_folder

    calibrated = head_calibration.calibration(ctx) if ctx.params.get("data") is not None else None
    return executorch_folder.write(ctx, calibrated)
