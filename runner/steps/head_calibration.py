"""Tables that multiply, rounded by calibration data: what builds of engines do for it, and its cost. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Context, Cost, DataFacts, Inputs, MachineFacts, Params
from runner.export import table_layouts
from runner.steps import forward_cost
from runner.steps.gptq_solver import shape_seconds

if TYPE_CHECKING:
    from runner.export.tables import Calibration

_ROWS = 4096  # of a table that are solved at once (runner/methods/gptq.py)
_COPIES = 8  # float32 copies of them, and of a square of their columns, while they are (measured)


def calibration(ctx: Context, before: int = 0) -> Calibration:
    """Return by what the table that multiplies is rounded: the inputs of the head on the text of `data`.

    The model is run a layer at a time, after so many layers of an earlier run where there is one; a step that was
    interrupted goes on at its first unfinished layer.
    """
    from runner.export import tables
    from runner.model.architecture.inspect import of_artifact
    from runner.model.layerwise import head_inputs
    from runner.model.layerwise.stream_run import StreamInputs, StreamRun
    from runner.steps import layer_stream

    def watch(done: int, rows: int) -> None:
        ctx.emit("progress", phase="rounding the head", done=done, total=rows, unit="rows")
        ctx.safe_point()

    checkpoint = ctx.inputs["checkpoint"]
    inputs = StreamInputs(checkpoint.path, of_artifact(checkpoint), ctx.device, ctx.data("data"))
    run = layer_stream.stream_run(ctx)
    if before:  # the files of the earlier run stay
        folder = ctx.scratch_dir / "head"
        run = StreamRun(folder, folder / "progress.json", run.hooks, before)
    return tables.calibration(head_inputs.second_moment(inputs, run), watch)


def data_of(params: Params, inputs: Inputs, embedding: str) -> DataFacts | None:
    """Return the calibration data by which a table is rounded; None where none is. `embedding`: how it is stored."""
    calibrated = table_layouts.is_calibrated(inputs.checkpoint, params, embedding)
    return inputs.data["data"] if calibrated else None


def with_calibration(own: Cost, facts: CheckpointFacts, data: DataFacts | None, machine: MachineFacts) -> Cost:
    """Return the cost of a build with that of running the model before it, if so, and of solving while it writes."""
    if data is None:
        return own
    rows, columns = facts.config.vocabulary_size, facts.config.hidden_size
    forward = forward_cost.estimate_forward([facts], data, machine)
    solving = own.memory + 4 * _COPIES * columns * (min(rows, _ROWS) + columns)
    seconds = own.seconds + forward.seconds + shape_seconds([(rows, columns)], [columns], machine)
    return replace(own, memory=max(solving, forward.memory), scratch=own.scratch + forward.scratch, seconds=seconds)
