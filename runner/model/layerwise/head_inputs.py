"""The second moment of what the output head is multiplied with on calibration texts, the model run layer by layer."""

from __future__ import annotations

import torch

from runner.model.layerwise.final_hidden import final_hidden
from runner.model.layerwise.statistics_collector import StatisticsCollector
from runner.model.layerwise.stream_run import StreamInputs, StreamRun
from runner.model.layerwise.streamed_model import StreamedModel


def second_moment(inputs: StreamInputs, run: StreamRun) -> torch.Tensor:
    """Return (2 / tokens) · XᵀX [in, in], float32 on the CPU, X the inputs of the head.

    They are those of the checkpoint: of its quantized layers where it has some. A run that was interrupted goes on at
    its first unfinished layer.
    """
    if inputs.ids is None:
        raise ValueError("the inputs of the head need calibration data")
    streamed = StreamedModel(inputs.folder, inputs.device)
    try:
        flow = final_hidden(streamed, inputs.ids, run)
        final = flow.file(0, len(streamed))
        streamed.load_rest(embedding=False)
        collector: StatisticsCollector | None = None
        with torch.no_grad():
            for start, stop in flow.spans:
                run.hooks.safe_point()
                x = streamed.outside.head_inputs(final.read(start, stop))
                if collector is None:
                    collector = StatisticsCollector("hessian", x.shape[-1], x.device)
                collector.add(x)
                run.hooks.emit("progress", phase="inputs of the head", done=stop, total=flow.windows, unit="windows")
        streamed.free_rest()
    finally:
        streamed.reader.close()
    if collector is None:
        raise ValueError("the calibration data has no windows")
    return collector.finish().of("hessian").cpu()
