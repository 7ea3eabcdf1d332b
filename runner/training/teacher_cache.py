"""A cache of teacher outputs on disk: the teacher runs once, a layer in memory at a time, before training.

Of each position that has a next token the cache holds the k largest logits (float16, less the largest one), the tokens
they belong to, and log Σ exp(z / T) over the vocabulary. Differences to the largest logit are small where probability
is large, so that float16 moves a probability by less than 2e-4 of itself per unit of temperature, about the error
of bfloat16 logits; log Σ exp is that of the rounded logits and the exact rest, so that the outcomes add up to 1.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from runner.errors import StepFailed
from runner.model.checkpoint.safetensors_writer import write_all, written
from runner.model.layerwise.activation_file import as_bytes
from runner.model.layerwise.final_hidden import final_hidden, position_chunks
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.stream_run import StreamHooks, StreamRun
from runner.model.layerwise.streamed_model import StreamedModel
from runner.training.losses import TopK

_MARKER = "cache.json"
_FILES = ("logits", "indices", "logsumexp")


@dataclass(frozen=True)
class Layout:
    """The layout of a cache: [windows, positions, top_k], for one temperature, over `vocabulary` tokens."""

    windows: int
    positions: int
    top_k: int
    temperature: float
    vocabulary: int

    def types(self) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
        """Return the types of the files logits, indices and logsumexp."""
        return torch.float16, torch.uint16 if self.vocabulary <= 1 << 16 else torch.int32, torch.float32

    def shape(self, file: str) -> tuple[int, ...]:
        """Return the shape of one window in a file."""
        return (self.positions,) if file == "logsumexp" else (self.positions, self.top_k)


class Cached:
    """A finished cache. Rows are read on demand and not cached in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        self.layout = Layout(**marker["layout"])
        self._place = {row: place for place, row in enumerate(marker["rows"])}
        self._open = {name: os.open(folder / name, os.O_RDONLY) for name in _FILES}

    def rows(self, rows: torch.Tensor) -> TopK:
        """Return the teacher's outputs for the windows `rows` [b]: [b, positions, k] on the CPU, float32 and int64."""
        places = [self._place[row] for row in rows.tolist()]
        logits, indices, logsumexp = (
            self._read(name, dtype, places) for name, dtype in zip(_FILES, self.layout.types(), strict=True)
        )
        return TopK(logits.float(), indices.long(), logsumexp, self.layout.vocabulary)

    def _read(self, name: str, dtype: torch.dtype, places: list[int]) -> torch.Tensor:
        values = torch.empty((len(places), *self.layout.shape(name)), dtype=dtype)
        for window, place in zip(values, places, strict=True):
            data = as_bytes(window)
            done, start = 0, place * len(data)
            while done < len(data):
                count = os.preadv(self._open[name], [data[done:]], start + done)
                if count == 0:
                    raise StepFailed(
                        f"{self.folder / name} is cut short: it ends in window {place + 1} of {self.layout.windows}",
                        "remove that folder, and the teacher runs again",
                    )
                done += count
        return values

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that is run over text, and the part of its logits to store.

    vocabulary   the number of logits to use, without padding
    """

    checkpoint: Path
    device: str
    top_k: int
    temperature: float
    vocabulary: int


def cache(
    teacher: Teacher, ids: torch.Tensor, rows: torch.Tensor, folder: Path, hooks: StreamHooks, before: int = 0
) -> Cached:
    """Run the teacher over the windows `rows` [n] of `ids` [windows, length] and store its top-k logits in `folder`.

    A finished cache of the same layout is opened instead. An interrupted run resumes at its first unfinished layer, or
    at the logits. `before` is the number of layers that the step ran earlier, for events.
    """
    size = teacher.vocabulary
    layout = Layout(len(rows), ids.shape[1] - 1, min(teacher.top_k, size), teacher.temperature, size)
    hidden = folder.with_name(f"{folder.name}-hidden")
    if not _finished(folder, layout):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARKER).unlink(missing_ok=True)
        hidden.mkdir(parents=True, exist_ok=True)
        streamed = StreamedModel(teacher.checkpoint, teacher.device)
        run = StreamRun(hidden, hidden / "progress.json", hooks, before=before)
        flow = final_hidden(streamed, ids[rows], run)
        _write(streamed, flow, layout, folder, hooks)
        flow.drop(len(streamed))
        streamed.reader.close()
        with written(folder / _MARKER) as file:
            write_all(file, json.dumps({"layout": asdict(layout), "rows": rows.tolist()}).encode())
    shutil.rmtree(hidden, ignore_errors=True)
    return Cached(folder)


def truncated(logits: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Convert float32 logits [..., V] to the cached form: (logits [..., k], indices [..., k], logsumexp [...])."""
    logits = logits[..., : layout.vocabulary]
    values, indices = logits.topk(layout.top_k, -1)
    largest = values[..., :1]
    values = (values - largest).to(torch.float16)
    rest = (logits - largest).div_(layout.temperature).scatter_(-1, indices, -torch.inf).logsumexp(-1)
    logsumexp = torch.logaddexp((values.float() / layout.temperature).logsumexp(-1), rest)
    return values, indices, logsumexp


def _finished(folder: Path, layout: Layout) -> bool:
    """Return whether the folder holds a finished cache of this layout: the marker is written last."""
    try:
        return Layout(**json.loads((folder / _MARKER).read_text(encoding="utf-8"))["layout"]) == layout
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False


def _write(streamed: StreamedModel, flow: HiddenStates, layout: Layout, folder: Path, hooks: StreamHooks) -> None:
    """Apply the head to the final hidden states of `flow`, in chunks of windows and positions, and write the files."""
    final = flow.file(0, len(streamed))
    streamed.load_rest(embedding=False)
    columns = streamed.vocabulary_size
    with torch.no_grad(), ExitStack() as stack:
        files = [stack.enter_context(written(folder / name)) for name in _FILES]
        for start, stop in flow.spans:
            hooks.safe_point()
            hidden = final.read(start, stop)
            chunks = [
                truncated(streamed.logits(hidden, keep), layout)
                for keep in position_chunks(flow.length, stop - start, columns)
            ]
            for file, dtype, parts in zip(files, layout.types(), zip(*chunks, strict=True), strict=True):
                write_all(file, as_bytes(torch.cat(parts, 1).to("cpu", dtype).contiguous()))
            hooks.emit("progress", phase="teacher", done=stop, total=flow.windows, unit="windows")
    streamed.free_rest()
