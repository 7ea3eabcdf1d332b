"""A checkpoint's final hidden states, streamed layer by layer, and the logits made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from runner.model.layerwise import progress_file
from runner.model.layerwise.forward_modes import forward
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.memory_budget import LOGIT_BYTES
from runner.model.layerwise.process_group import ALONE, ProcessGroup
from runner.model.layerwise.stream_run import StreamRun
from runner.model.layerwise.streamed_model import StreamedModel
from runner.system import heap


class Observer(Protocol):
    """Watches every layer while all tokens run through it."""

    def attach(self, index: int) -> Sequence[RemovableHandle]:
        """Return the hooks of a layer that is loaded, to be removed after its forwards."""
        ...

    def result(self, index: int) -> dict[str, Any]:
        """Return what was seen of the layer as JSON; it is kept with the progress of the run."""
        ...


def final_hidden(
    streamed: StreamedModel,
    ids: torch.Tensor,
    run: StreamRun,
    observer: Observer | None = None,
    group: ProcessGroup = ALONE,
) -> HiddenStates:
    """Run `ids` through every layer; file (0, len(streamed)) of the result holds what enters the last norm.

    Each process of `group` runs windows of its own, and the first one keeps the progress.
    """
    run.scratch.mkdir(parents=True, exist_ok=True)
    flow = HiddenStates(streamed, ids, run.scratch, group=group)
    saved = progress_file.load(run.progress, len(streamed))
    heap.trim()  # what the making of the model left
    with torch.no_grad():
        if not group.broadcast(flow.begin(saved.layer, saved.hidden)):
            saved = progress_file.Progress(len(streamed))
            flow.begin(0, [])
        for index in range(saved.layer, len(streamed)):
            run.hooks.safe_point()
            started = time.perf_counter()
            lane = flow.lane(0, index, streamed.load(index))
            handles = observer.attach(index) if observer is not None else ()
            for span in flow.spans:
                lane.write(span[0], forward(lane, span))
            for handle in handles:
                handle.remove()
            streamed.free(index)
            if observer is not None:
                saved.results.append(observer.result(index))
            saved.layer, saved.hidden = index + 1, flow.finished(index + 1)
            if group.is_first:
                saved.save(run.progress)
            flow.drop(index)
            heap.trim()
            seconds = time.perf_counter() - started
            layers = run.before + len(streamed) + run.after
            run.hooks.emit("layer", layer=run.before + index + 1, layers=layers, seconds=seconds, error=None)
    return flow


def position_chunks(length: int, windows: int, vocabulary: int) -> Iterator[torch.Tensor]:
    """Positions 0 … length − 2 (those with a next token), in chunks whose float32 logits fit LOGIT_BYTES."""
    size = max(1, LOGIT_BYTES // (4 * windows * vocabulary))
    for start in range(0, length - 1, size):
        yield torch.arange(start, min(length - 1, start + size))
