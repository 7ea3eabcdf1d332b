"""What a stream is given: the checkpoint, where it keeps what it resumes from, and what it calls while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.contracts.context import Samples
from runner.contracts.facts import CheckpointFacts
from runner.model.layerwise.method import Transformed

if TYPE_CHECKING:
    import torch

PARTS = 8  # parts of the calibration batches, and so the most processes that share them
ExpertSink = Callable[[int, Mapping[str, Transformed]], None]  # takes the changed modules of an expert of a layer


class Emit(Protocol):
    """Receives progress events: "layer", "progress", "message" (see runner.progress.events)."""

    def __call__(self, event: str, **fields: Any) -> None: ...


@dataclass(frozen=True)
class StreamHooks:
    """Functions that a stream calls: `safe_point` where everything done so far can be resumed; it may raise.

    `judge` is called with the number of finished layers, the number of all layers, and the error of the last finished
    one (None where the method does not measure it), when that layer can be resumed from; it may raise too.
    """

    emit: Emit
    safe_point: Callable[[], None]
    judge: Callable[[int, int, float | None], None] = lambda layer, layers, error: None


def _nothing(*args: Any, **fields: Any) -> None:
    """Do nothing."""


SILENT = StreamHooks(_nothing, _nothing)  # of the further processes of a step: the first one reports and stops


@dataclass(frozen=True)
class StreamRun:
    """One pass over a model.

    scratch   folder of the hidden states; it outlives an interruption
    progress  file that says how far the pass has come
    before    layers that were run before these, and `after`, layers that will be: events count all of them
    """

    scratch: Path
    progress: Path
    hooks: StreamHooks
    before: int = 0
    after: int = 0


@dataclass(frozen=True)
class StreamInputs:
    """The checkpoint that goes through a stream, and where it is computed.

    facts     of the checkpoint in `folder`
    ids       calibration windows [windows, length], int64; None for a method that collects no statistics
    images    the same windows with images, where they have any
    original  folder of the unchanged model that "cross" compares with; None: the checkpoint itself
    processes  how many share the calibration windows; it changes no byte of the result
    """

    folder: Path
    facts: CheckpointFacts
    device: str = "cpu"
    ids: torch.Tensor | None = None
    original: Path | None = None
    processes: int = 1
    images: Samples | None = None
