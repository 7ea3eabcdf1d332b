"""The settings and the task of a training, and the protocol of what is trained. Imported by the planner: no torch.

A training kind's `run` writes the inputs of its processes to its scratch folder and calls `runner.training.run.fit(ctx,
task)`. Every process imports `task.build`, builds its own model with it, and trains on its part of each batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """The settings of a training. `batch_size` counts windows of one optimizer step, over all processes."""

    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    precision: str  # "auto", "bf16" or "fp32"
    gradient_checkpointing: bool
    evaluate_every: int
    evaluate_from: int  # the first step whose state may be the best
    patience: int | None
    save_every: int
    fsdp: bool


def settings(params: Params, windows: int, length: int) -> Settings:
    """Return the settings from a kind's parameters, for training data of `windows` windows of `length` tokens."""
    batch = int(params["batch_size"])
    steps = params.get("steps")
    if steps is None:
        tokens = params.get("tokens") or windows * length
        steps = max(1, math.ceil(tokens / (batch * length)))
    return Settings(
        steps=int(steps),
        batch_size=batch,
        accumulation=int(params["gradient_accumulation"]),
        learning_rate=float(params["learning_rate"]),
        schedule=str(params["learning_rate_schedule"]),
        warmup_steps=round(float(params["warmup"]) * int(steps)),
        weight_decay=float(params["weight_decay"]),
        max_grad_norm=float(params["max_grad_norm"]),
        precision=str(params["precision"]),
        gradient_checkpointing=bool(params["gradient_checkpointing"]),
        evaluate_every=int(params["evaluate_every"]),
        evaluate_from=int(params.get("evaluate_from", 0)),
        patience=params.get("patience"),
        save_every=int(params["save_every"]),
        fsdp=bool(params.get("fsdp", False)),
    )


@dataclass(frozen=True)
class Task:
    """One training; `to_json` and `from_json` pass it to other processes.

    build       "module:function", called as `function(arguments, device) -> Trainable`
    arguments   JSON for it
    ids         .npy, int64 [windows, length]: the training windows
    evaluation  .npy of the same form, or None
    folder      of the training checkpoints; it persists over interruptions
    """

    build: str
    arguments: Mapping[str, Any]
    settings: Settings
    ids: Path
    evaluation: Path | None
    folder: Path
    seed: int
    device: str
    threads: int
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        paths = {"ids": str(self.ids), "folder": str(self.folder)}
        return {**asdict(self), **paths, "evaluation": None if self.evaluation is None else str(self.evaluation)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Task:
        evaluation = value["evaluation"]
        return Task(**{
            **value, "settings": Settings(**value["settings"]), "ids": Path(value["ids"]),
            "folder": Path(value["folder"]), "evaluation": None if evaluation is None else Path(evaluation),
        })  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """The input of a loss: `ids` [b, length] int64 on the device, and `rows` [b], their windows in the data."""

    ids: torch.Tensor
    rows: torch.Tensor


class Trainable(Protocol):
    """A model with its loss. Parameters with `requires_grad` are trained, saved in checkpoints, and returned.

    `loss` returns the mean loss over the batch's tokens (a scalar with a gradient) and further scalars to show.
    `stepped(step)` runs after every optimizer step (counted from 1), in every process, and again where a training
    resumes from a checkpoint of that step: masks are applied there, as a function of step and weights.
    """

    model: nn.Module

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]: ...
    def stepped(self, step: int) -> None: ...


@dataclass(frozen=True)
class Fitted:
    """The result of a training. `weights` is a safetensors file of the trained parameters by name in the model, fp32.

    `metrics` for the record (loss, steps, tokens, seconds of training ...), `details` with the loss curve.
    """

    weights: Path
    metrics: Mapping[str, float]
    details: Mapping[str, Any]
