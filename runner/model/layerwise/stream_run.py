"""What a stream needs around a model: where it keeps what it resumes from, and what it calls while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


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
