"""What `engine.walk` asks of decoder layers that hidden states flow through, except what happens in each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from runner.model.layerwise import progress_file
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.stream_run import StreamRun
from runner.model.layerwise.streamed_model import StreamedModel

Mode = Callable[[], AbstractContextManager[Any]]


class FlowingLayers:
    """The decoder layers of `streamed`, fed with the token windows `ids` [windows, length].

    `run` of a subclass reads what enters a layer from `flow` and writes what enters the next.
    """

    def __init__(self, streamed: StreamedModel, ids: torch.Tensor) -> None:
        self.streamed, self.ids = streamed, ids
        self.flow: HiddenStates  # set by `begin`

    def begin(self, progress: progress_file.Progress, run: StreamRun) -> progress_file.Progress:
        self.flow = HiddenStates(self.streamed, self.ids, run.scratch)
        return begin_flow(self.flow, progress, run)

    def finished(self, layer: int) -> list[str]:
        return self.flow.finished(layer) if layer < len(self.streamed) else []

    def drop(self, layer: int) -> None:
        self.flow.drop(layer)

    def close(self) -> None:
        self.flow.drop(len(self.streamed))
        self.streamed.reader.close()


def begin_flow(
    flow: HiddenStates, progress: progress_file.Progress, run: StreamRun, mode: Mode = torch.inference_mode
) -> progress_file.Progress:
    """Make what enters the first unfinished layer ready; return the progress that its files bear out."""
    layers = len(flow.streamed)
    if progress.layer == layers:
        return progress  # stopped while the folder was put together: no layer is left to feed
    with mode():
        if flow.group.broadcast(flow.begin(progress.layer, progress.hidden)):
            return progress
        run.hooks.emit("message", level="warning", text="the hidden states of the interrupted run are not intact: "
                       "starting again at the first layer")  # fmt: skip
        flow.begin(0, [])
        return progress_file.Progress(layers)
