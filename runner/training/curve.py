"""The measurements of a training: the loss curve, the evaluations, and the best state. No torch.

It is a part of every training checkpoint, so that the record of a resumed training is that of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

POINTS = 500  # of the curve in a record
_SMOOTHING = 0.95  # weight of the past in the smoothed loss: about the last twenty steps


@dataclass
class Curve:
    """`points` hold the mean loss of the steps since the point before; `weighted` / `weight` is the smoothed loss.

    `step` is the last one, `best_step` the evaluated one with the lowest loss, `stale` the number of
    evaluations since then.
    """

    steps: int
    step: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float = math.inf
    stale: int = 0
    weighted: float = 0.0
    weight: float = 0.0
    pending: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, learning_rate: float, parts: Mapping[str, float]) -> None:
        """Add the loss of one optimizer step, counted from 1."""
        self.weighted = _SMOOTHING * self.weighted + (1 - _SMOOTHING) * loss
        self.weight = _SMOOTHING * self.weight + (1 - _SMOOTHING)
        self.pending.append(loss)
        self.step = step
        every = -(-self.steps // (POINTS - 1))
        if step % every == 0 or step == self.steps:
            self.point(learning_rate, parts)

    def point(self, learning_rate: float, parts: Mapping[str, float]) -> None:
        """Add a point of the curve at the current step; do nothing where it has one already."""
        if self.pending:
            mean = sum(self.pending) / len(self.pending)
            point = {"step": self.step, "loss": mean, "learning_rate": learning_rate}
            self.points.append(point | ({"parts": dict(parts)} if parts else {}))
            self.pending = []

    def add_evaluation(self, step: int, loss: float) -> bool:
        """Add an evaluation; return whether it is the best so far."""
        self.evaluations.append({"step": step, "loss": loss})
        better = loss < self.best_loss
        if better:
            self.best_step, self.best_loss, self.stale = step, loss, 0
        else:
            self.stale += 1
        return better

    @property
    def smoothed(self) -> float:
        """Exponential moving average of the losses; NaN before the first step."""
        return self.weighted / self.weight if self.weight else math.nan

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Curve:
        best = value["best_loss"]
        return Curve(**{**value, "best_loss": math.inf if best is None else best})
