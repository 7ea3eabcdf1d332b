"""The hidden states of a model on their way through its decoder layers, from file to file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from runner.contracts.context import Samples
from runner.errors import StepFailed
from runner.model.layerwise.activation_file import Activations, batches
from runner.model.layerwise.forward_modes import Lane, Span
from runner.model.layerwise.layer_arguments import SCOUT, LayerArguments
from runner.model.layerwise.layer_probes import Call
from runner.model.layerwise.memory_budget import batch_tokens
from runner.model.layerwise.process_group import ALONE, ProcessGroup
from runner.model.layerwise.streamed_model import StreamedModel


class HiddenStates:
    """Token windows `ids` [windows, length] on their way through one streamed model, in `lanes` versions of it.

    The file `hidden-<lane>-<i>` holds what enters layer i; a layer's input is removed when the next one is safe.
    `spans` are the batches that this process of `group` runs; lanes behind the first one run every `every`-th batch of
    all, those of `paired`. With `images` each batch is one window, of as many tokens as its sample has.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        ids: torch.Tensor,
        folder: Path,
        lanes: int = 1,
        group: ProcessGroup = ALONE,
        every: int = 1,
        images: Samples | None = None,
    ) -> None:
        self.streamed = streamed
        self.images = images
        self.ids = ids
        self.folder = folder
        self.lanes = lanes
        self.windows, self.length = ids.shape
        tokens = batch_tokens(streamed.device.type, streamed.widest()) if images is None else self.length
        self.all_spans: list[Span] = list(batches(self.windows, self.length, tokens))
        self.group = group
        self.spans = [self.all_spans[batch] for batch in group.owned(len(self.all_spans))]
        self.paired = frozenset(self.all_spans[::every])
        self._arguments = LayerArguments(folder, lanes)
        self._scout: torch.Tensor | None = None
        self._open: dict[tuple[int, int], Activations] = {}

    def begin(self, layer: int, digests: list[str]) -> bool:
        """Make the inputs of `layer` ready: embed for layer 0, else trust the files if they are what was written.

        False where a file of an interrupted run is not intact: the caller starts again at layer 0.
        """
        self.streamed.load_rest(towers=self.images is not None)
        try:
            self._scout, calls = self.streamed.calls(self._text().to(self.streamed.device))
            self._arguments.record(SCOUT, calls)
            for span in self.spans:
                hidden, calls = self._calls(span)
                self._arguments.record(span, calls)
                for lane in range(self._lanes_of(span)) if layer == 0 else ():
                    self._write(lane, 0, span[0], hidden)
        finally:
            self.streamed.free_rest()
        return layer == 0 or self._intact(layer, digests)

    def _text(self) -> torch.Tensor:
        """Two tokens [1, 2]: the first ones, or with images the last ones of a sample, which are of its text."""
        end = 2 if self.images is None else self.images.lengths[0]
        return self.ids[:1, end - 2 : end]

    def _calls(self, span: Span) -> tuple[torch.Tensor, list[Call]]:
        if self.images is None:
            return self.streamed.calls(self.ids[span[0] : span[1]].to(self.streamed.device))
        return self.streamed.calls_with_images(self.images.inputs(span[0]))

    def _length(self, start: int) -> int:
        """The tokens of the windows from `start` on."""
        return self.length if self.images is None else self.images.lengths[start]

    def token_ranges(self) -> dict[Span, tuple[int, int]]:
        """The places of the tokens of every batch of this process among those of all windows."""
        last = {start: (stop - 1) * self.length + self._length(stop - 1) for start, stop in self.spans}
        return {(start, stop): (start * self.length, last[start]) for start, stop in self.spans}

    def has_state(self) -> bool:
        """Whether layers hand one another more than hidden states."""
        return self._arguments.has_state()

    def _intact(self, layer: int, digests: list[str]) -> bool:
        if not self.group.is_first:  # the first one decides
            return not self._arguments.has_state() or self._arguments.load_states(self._state_file(layer), digests[-1])
        files = [self.file(lane, layer) for lane in range(self.lanes)]
        if self._arguments.has_state():
            if not digests or not self._arguments.load_states(self._state_file(layer), digests[-1]):
                return False
            digests = digests[:-1]
        return len(digests) == len(files) and all(f.intact(d) for f, d in zip(files, digests, strict=True))

    def _state_file(self, layer: int) -> Path:
        return self.folder / f"state-{layer}"

    def file(self, lane: int, layer: int) -> Activations:
        key = (lane, layer)
        if key not in self._open:
            width = self.streamed.hidden_size
            path, shape = self.folder / f"hidden-{lane}-{layer}", (self.windows, self.length, width)
            owned, held = (
                [window for span in spans if lane < self._lanes_of(span) for window in range(*span)]
                for spans in (self.spans, self.all_spans)
            )
            self._open[key] = Activations(path, shape, self.streamed.dtype, self.streamed.device, owned, held)
        return self._open[key]

    def _lanes_of(self, span: Span) -> int:
        return self.lanes if span in self.paired else 1

    def lane(self, lane: int, layer: int, module: torch.nn.Module) -> Lane:
        """Return the lane that runs `module` as decoder layer `layer`."""
        write = partial(self._write, lane, layer + 1)
        return Lane(module, partial(self._read, lane, layer), write, partial(self._arguments.call, lane, layer))

    def _read(self, lane: int, layer: int, start: int, stop: int) -> torch.Tensor:
        return self.file(lane, layer).read(start, stop)[:, : self._length(start)]

    def _write(self, lane: int, layer: int, start: int, hidden: torch.Tensor) -> None:
        """Put what enters `layer` on disk, [batch, tokens, hidden] from window `start` on.

        StepFailed where it has NaN or infinity: nothing that is computed from it would mean anything.
        """
        if not bool(hidden.isfinite().all()):
            where = f"decoder layer {layer - 1} gives" if layer else "the embedding gives"
            raise StepFailed(
                f"{where} NaN or infinity for the windows from {start} on",
                "evaluate the model before the step that broke it; float16 overflows above 65504: take bfloat16",
            )
        missing = self.length - hidden.shape[1]
        self.file(lane, layer).write(start, torch.nn.functional.pad(hidden, (0, 0, 0, missing)) if missing else hidden)

    def scout(self, layer: int) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
        """What `layer` could be called with for two tokens: hidden states [1, 2, hidden] and the other arguments."""
        if self._scout is None:
            raise RuntimeError("a flow is begun before anything is asked of it")
        return self._scout, *self._arguments.call(0, layer, SCOUT)

    def finished(self, layer: int) -> list[str]:
        """The digests of what enters layer `layer`, all of it written: of each lane, then of what layers share.

        Empty in all processes but the first.
        """
        written = [self.file(lane, layer).window_digests() for lane in range(self.lanes)]
        has_state = self._arguments.has_state()
        _, *others = self.group.gather((written, self._arguments.states(self.spans) if has_state else {})) or [None]
        if not self.group.is_first:
            return []
        digests = [self.file(lane, layer).digest([more[lane] for more, _ in others]) for lane in range(self.lanes)]
        if has_state:
            digests.append(self._arguments.save_states(self._state_file(layer), [states for _, states in others]))
        return digests

    def drop(self, layer: int) -> None:
        """Forget what entered `layer`."""
        self._arguments.drop(layer)
        if self.group.is_first:
            self._state_file(layer).unlink(missing_ok=True)
        for lane in range(self.lanes):
            file = self._open.pop((lane, layer), None)
            if file is not None:
                file.close()
            if self.group.is_first:
                (self.folder / f"hidden-{lane}-{layer}").unlink(missing_ok=True)
