"""The hidden states of a model on their way through its decoder layers, from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runner.model.layerwise.activation_file import Activations, batches
from runner.model.layerwise.forward_modes import Lane, Span
from runner.model.layerwise.layer_probes import Call
from runner.model.layerwise.memory_budget import batch_tokens
from runner.model.layerwise.streamed_model import StreamedModel


class HiddenStates:
    """Token windows `ids` [windows, length] on their way through one streamed model, in `lanes` versions of it.

    The file `hidden-<lane>-<i>` holds what enters layer i; a layer's input is removed when the next one is safe.
    """

    def __init__(self, streamed: StreamedModel, ids: torch.Tensor, folder: Path, lanes: int = 1) -> None:
        self.streamed = streamed
        self.ids = ids
        self.folder = folder
        self.lanes = lanes
        self.windows, self.length = ids.shape
        tokens = batch_tokens(streamed.device.type, streamed.widest())
        self.spans: list[Span] = list(batches(self.windows, self.length, tokens))
        self._calls: dict[int, list[Call]] = {}
        self._scout: tuple[torch.Tensor, list[Call]] | None = None
        self._open: dict[tuple[int, int], Activations] = {}

    def begin(self, layer: int, digests: list[str]) -> bool:
        """Make the inputs of `layer` ready: embed for layer 0, else trust the files if they are what was written.

        False where a file of an interrupted run is not intact: the caller starts again at layer 0.
        """
        self.streamed.load_rest()
        try:
            self._scout = self.streamed.calls(self.ids[:1, :2].to(self.streamed.device))
            if layer == 0:
                self._embed()
                return True
            for span in (self.spans[0], self.spans[-1]):
                self._record(span)
        finally:
            self.streamed.free_rest()
        files = [self.file(lane, layer) for lane in range(self.lanes)]
        return len(digests) == len(files) and all(f.intact(d) for f, d in zip(files, digests, strict=True))

    def _embed(self) -> None:
        for span in self.spans:
            hidden = self._record(span)
            for lane in range(self.lanes):
                self.file(lane, 0).write(span[0], hidden)

    def _record(self, span: Span) -> torch.Tensor:
        ids = self.ids[span[0] : span[1]].to(self.streamed.device)
        hidden, calls = self.streamed.calls(ids)
        self._calls.setdefault(span[1] - span[0], calls)
        return hidden

    def file(self, lane: int, layer: int) -> Activations:
        key = (lane, layer)
        if key not in self._open:
            width = self.streamed.config.get_text_config().hidden_size
            path = self.folder / f"hidden-{lane}-{layer}"
            self._open[key] = Activations(
                path, (self.windows, self.length, width), self.streamed.dtype, self.streamed.device
            )
        return self._open[key]

    def lane(self, lane: int, layer: int, module: torch.nn.Module) -> Lane:
        """The lane of `passes` that runs `module` as decoder layer `layer`."""
        source, target = self.file(lane, layer), self.file(lane, layer + 1)
        return Lane(module, source.read, target.write)

    def call(self, layer: int, span: Span) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._calls[span[1] - span[0]][layer]

    def scout(self, layer: int) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
        """What `layer` could be called with for two tokens: hidden states [1, 2, hidden] and the other arguments."""
        if self._scout is None:
            raise RuntimeError("a flow is begun before anything is asked of it")
        hidden, calls = self._scout
        return hidden, *calls[layer]

    def finished(self, layer: int) -> list[str]:
        """The digests of what enters layer `layer`, all of it written."""
        return [self.file(lane, layer).digest() for lane in range(self.lanes)]

    def drop(self, layer: int) -> None:
        """Forget what entered `layer`."""
        for lane in range(self.lanes):
            file = self._open.pop((lane, layer), None)
            if file is not None:
                file.close()
            (self.folder / f"hidden-{lane}-{layer}").unlink(missing_ok=True)
