"""An ONNX graph of a checkpoint: `model.onnx`, a file of its weights, and all that is needed to run it."""

from __future__ import annotations

from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import (
    CHECKPOINT,
    ENGINE,
    QUANTIZED,
    Context,
    Cost,
    DataFacts,
    Inputs,
    Params,
    Requirement,
    Result,
)
from runner.errors import Diagnostic
from runner.export import graph_layouts, preflight, table_layouts, web
from runner.model.layerwise import memory_budget
from runner.steps import head_calibration

VERSION = 7
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = ENGINE
REQUIRES = (Requirement("onnx", "onnx"), Requirement("onnxscript", "onnx"), Requirement("onnxruntime", "onnx"))
METRICS = ()

_DETAILS = ("target", "precision", "embedding", "tables", "operators", "stored", "carried", "bytes")
_EXPORTER = 120 << 20  # torch's exporter and onnx imported, one layer traced (measured)
_LAYER = 6 << 20  # of a traced graph
_SECONDS = 12.0
_LAYER_SECONDS = 1.5


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = preflight.refusals(inputs.checkpoint, str(params["target"])) + preflight.refuse_operators(params)
    found += web.refuse(inputs.checkpoint, params)
    embedding = preflight.embedding(inputs.checkpoint, params)
    refused = table_layouts.refuse(inputs.checkpoint, str(params["target"]), embedding)
    if params["target"] == graph_layouts.TENSORRT and not any(d.code == "R478" for d in found):
        found += preflight.warn_of_tokens(inputs.checkpoint)
    found += table_layouts.check_data(inputs.checkpoint, params, embedding)
    return found + (refused or table_layouts.warn(params, embedding))


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; memory holds only the largest weight: as stored, in the graph's type, and transposed."""
    facts = inputs.checkpoint
    written = preflight.nbytes(facts, *_stored(facts, params))
    value = preflight.FLOAT_BYTES[str(params["precision"])]
    tensors = preflight.largest(facts) * (4 + 2 * value)
    peak = memory_budget.RUNTIME + _EXPORTER + _LAYER * facts.layer_count + tensors
    seconds = _SECONDS + _LAYER_SECONDS * facts.layer_count
    seconds += (facts.nbytes + written) / max(1.0, inputs.machine.disk_bytes_per_second)
    cost = Cost(peak, written, 0, seconds)
    return head_calibration.with_calibration(cost, facts, _data(params, inputs), inputs.machine)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    from dataclasses import replace

    facts, operators = inputs.checkpoint, preflight.operators(params)
    described = preflight.engine(facts, *_stored(facts, params), operators, _data(params, inputs))
    return replace(facts, engine=described)


def _data(params: Params, inputs: Inputs) -> DataFacts | None:
    """Return the calibration data by which a table is rounded, if one is."""
    return head_calibration.data_of(params, inputs, preflight.embedding(inputs.checkpoint, params))


def _stored(facts: CheckpointFacts, params: Params) -> tuple[str, str, str]:
    return str(params["target"]), str(params["precision"]), preflight.embedding(facts, params)


def run(ctx: Context) -> Result:
    from runner.export import onnx_folder

    calibrated = head_calibration.calibration(ctx) if ctx.params.get("data") is not None else None
    engine: dict[str, Any] = onnx_folder.write(ctx, calibrated)
    return Result(details={key: engine[key] for key in _DETAILS if key in engine})
